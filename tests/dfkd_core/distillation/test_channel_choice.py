import pytest
import torch

from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.channel_choice import Regression, choose_channels


def generator():
    return derive_generator(0, "test")


def regression(width=6, taps=2, outputs=3):
    inputs = torch.randn(500, width * taps, generator=generator(), dtype=torch.float64)
    inputs = inputs @ torch.randn(width * taps, width * taps, generator=generator(), dtype=torch.float64)
    weights = torch.randn(width * taps, outputs, generator=derive_generator(1, "test"), dtype=torch.float64)
    return inputs, weights, Regression(inputs.T @ inputs / 500, weights, width)


def explained(gram, weights, channels, taps=2):
    """Return the share of the outputs' variance that a ridged regression on these channels explains, by definition."""
    ridged = gram + 0.03 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    columns = [channel * taps + tap for channel in channels for tap in range(taps)]
    cross = (gram @ weights)[columns]
    part = (cross * torch.linalg.solve(ridged[columns][:, columns], cross)).sum()
    return (part / (weights * (gram @ weights)).sum()).item()


def test_regression__values_are_the_gains_and_losses_of_a_fit_done_anew():
    inputs, weights, problem = regression()
    gram = inputs.T @ inputs / 500
    problem.move([4], into=True)
    problem.move([1, 2], into=True)
    problem.move([4], into=False)
    values, base = problem.values().tolist(), explained(gram, weights, [1, 2])
    for channel in range(6):
        if channel in (1, 2):
            expected = explained(gram, weights, [c for c in (1, 2) if c != channel]) - base
        else:
            expected = explained(gram, weights, sorted([1, 2, channel])) - base
        assert values[channel] == pytest.approx(expected, rel=1e-6)


def testchoose_channels__finds_the_only_ones_that_count():
    inputs, weights, _ = regression()
    weights[[0, 1, 2, 3, 8, 9]] = 0
    inputs = torch.randn(500, 12, generator=generator(), dtype=torch.float64)
    problem = Regression(inputs.T @ inputs / 500, weights, 6)
    assert choose_channels([problem], 3).tolist() == [2, 3, 5]
