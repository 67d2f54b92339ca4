"""Bounds against exact small numbers, published ones, and a search for the most likely probabilities."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from dfkd_core.evaluation.intervals import lowest_paired_gain, lowest_unpaired_gain, wilson_interval

Z = NormalDist().inv_cdf(0.95)


def test_wilson_interval__ends_where_the_share_is_z_deviations_away() -> None:
    for share, n in ((0.8, 10), (0.5, 4), (0.9070, 10_000)):
        for end in wilson_interval(share, n, 1.96):
            assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))
    assert wilson_interval(1.0, 10, 1.96) == pytest.approx((10 / (10 + 1.96**2), 1.0))
    assert wilson_interval(0.0, 10, 1.96)[0] == 0.0


def test_lowest_unpaired_gain__is_newcombes_bound() -> None:
    # Newcombe 1998, table II: 9 of 10 against 3 of 10, two-sided 95 %.
    assert lowest_unpaired_gain(0.9, 0.3, 10, 0.975) == pytest.approx(0.1705, abs=5e-5)
    assert lowest_unpaired_gain(1.0, 0.0, 10, 0.975) == pytest.approx(0.6075, abs=5e-5)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 7, 100), (3, 0, 10), (250, 200, 10_000)])
def test_lowest_paired_gain__is_zero_where_mcnemar_is_just_certain(b: int, c: int, n: int) -> None:
    confidence = NormalDist().cdf((b - c) / math.sqrt(b + c))
    assert lowest_paired_gain(b, c, n, confidence) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [10, 100, 10_000])
def test_lowest_paired_gain__of_equal_answers_depends_on_their_number(n: int) -> None:
    assert lowest_paired_gain(0, 0, n, 0.95) == pytest.approx(-(Z**2) / (n + Z**2))


@pytest.mark.parametrize(("b", "c", "n"), [(3, 5, 20), (1, 0, 10), (0, 4, 12), (40, 55, 360)])
def test_lowest_paired_gain__uses_the_most_likely_probabilities(b: int, c: int, n: int) -> None:
    bound = lowest_paired_gain(b, c, n, 0.95)
    # All q in steps: the log likelihood of b, c and the rest if the difference is the bound.
    q = torch.linspace(max(0.0, -bound), (1 - bound) / 2, 2_000_001, dtype=torch.float64)[1:-1]
    likelihood = torch.xlogy(torch.tensor(b), q + bound) + torch.xlogy(torch.tensor(c), q)
    best = q[(likelihood + torch.xlogy(torch.tensor(n - b - c), 1 - 2 * q - bound)).argmax()].item()
    deviation = math.sqrt((2 * best + bound - bound**2) / n)
    assert ((b - c) / n - bound) / deviation == pytest.approx(Z, rel=1e-3)


def test_lowest_paired_gain__is_above_the_unpaired_one_and_covers_as_promised() -> None:
    assert lowest_paired_gain(300, 280, 10_000, 0.95) > lowest_unpaired_gain(0.879, 0.877, 10_000, 0.95)
    # 2,000 draws of 300 images; the new student is 2 points worse.
    drawn = torch.multinomial(
        torch.tensor([0.05, 0.07, 0.88]), 600_000, replacement=True, generator=torch.Generator().manual_seed(0)
    ).view(2000, 300)
    bounds = [lowest_paired_gain(int((row == 0).sum()), int((row == 1).sum()), 300, 0.95) for row in drawn]
    share = sum(bound <= -0.02 for bound in bounds) / len(bounds)
    assert 0.935 < share < 0.965
