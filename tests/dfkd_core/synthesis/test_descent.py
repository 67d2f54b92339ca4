import dataclasses

import pytest
import torch

from dfkd_core.errors import ConfigError, SynthesisError
from dfkd_core.priors.table import build_prior
from dfkd_core.progress import Progress
from dfkd_core.synthesis.descent import DescentConfig, blur_matrix, descend

SHAPE = (1, 8, 8)
CONFIG = DescentConfig(prior="pixels", iterations=20, learning_rate=0.05)
GOAL = torch.linspace(0.2, 0.8, 64).view(1, *SHAPE)


def starts(n=4):
    return build_prior("pixels", SHAPE).start(range(n), seed=0)


def squared_distance(images, rows):
    return {"distance": (images - GOAL).square().flatten(1).sum(1)}


def run(objective=squared_distance, n=4, **changes):
    return descend(
        build_prior("pixels", SHAPE),
        starts(n),
        objective,
        image_indices=range(n),
        descent=dataclasses.replace(CONFIG, **changes),
        device=torch.device("cpu"),
    )


def test_blur_matrix__is_the_gaussian_with_a_repeated_border():
    weights = torch.exp(-0.5 * (torch.arange(-3, 4) / 1.0) ** 2)
    weights /= weights.sum()
    matrix = blur_matrix(9, 1.0)
    torch.testing.assert_close(matrix[4, 1:8], weights)
    torch.testing.assert_close(matrix[0, 0], weights[:4].sum())
    torch.testing.assert_close(matrix.sum(1), torch.ones(9))


def test_first_step_in_colour__moves_every_pixel_against_its_own_gradient():
    starts = build_prior("pixels", (3, 8, 8)).start(range(2), seed=0)
    goal = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))

    def objective(images, rows):
        assert images.is_contiguous(memory_format=torch.channels_last)
        return {"distance": (images - goal).square().flatten(1).sum(1)}

    moved = descend(
        build_prior("pixels", (3, 8, 8)),
        starts,
        objective,
        image_indices=range(2),
        descent=dataclasses.replace(CONFIG, iterations=1),
        device=torch.device("cpu"),
    )
    torch.testing.assert_close(moved, (starts - 0.05 * (starts - goal).sign()).clamp(0, 1), atol=1e-4, rtol=0)


def test_first_smoothed_step__is_adams_sign_of_the_blurred_gradient_blurred():
    moved = run(iterations=1, smoothing_px=1.0)
    blur = blur_matrix(8, 1.0)
    gradient = 2 * (starts() - GOAL)
    step = -0.05 * (blur.T @ gradient @ blur).sign()
    torch.testing.assert_close(moved, (starts() + blur @ step @ blur.T).clamp(0, 1), atol=1e-5, rtol=0)


def test_smoothed_change__has_less_roughness_than_a_plain_one():
    def roughness(images):
        change = images - starts()
        return change.diff(dim=-1).square().sum() / change.square().sum()

    assert roughness(run(smoothing_px=1.0)) < 0.5 * roughness(run())


def test_descent__does_not_change_its_starts_and_lowers_the_loss():
    before = starts()
    after = run()
    assert torch.equal(before, starts())
    assert squared_distance(after, None)["distance"].sum() < 0.2 * squared_distance(before, None)["distance"].sum()


def test_non_finite_loss__names_iteration_term_and_image():
    def objective(images, rows):
        return {"odd": images.flatten(1).sum(1) / torch.tensor([1.0, 0.0, 1.0, 1.0])}

    with pytest.raises(SynthesisError, match=r"iteration 1 of 20: odd of 1 images \(1\)\. Lower"):
        run(objective)


def test_smoothing_of_fourier_coefficients__is_refused():
    with pytest.raises(ConfigError, match="smoothing_px must be 0 with prior 'fourier'"):
        DescentConfig(prior="fourier", smoothing_px=1.0)


def double_run(images_per_pass, **changes):
    """Move 7 images with losses of different scales, in double precision."""
    scale = torch.tensor([1.0, 0.01, 3.0, 0.2, 0.05, 10.0, 0.7]).double()

    def objective(images, rows):
        return {"distance": scale[rows] * (images - GOAL.double()).square().flatten(1).sum(1)}

    return descend(
        build_prior("pixels", SHAPE),
        starts(7).double(),
        objective,
        image_indices=range(7),
        descent=dataclasses.replace(CONFIG, **changes),
        device=torch.device("cpu"),
        images_per_pass=images_per_pass,
    )


@pytest.mark.parametrize("images_per_pass", [1, 2, 4, 100])
@pytest.mark.parametrize("changes", [{}, {"smoothing_px": 1.0}])
def test_images_moved_in_parts__are_those_moved_at_once(images_per_pass, changes):
    whole, parts = double_run(None, **changes), double_run(images_per_pass, **changes)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert not torch.equal(whole, starts(7))


def test_images_moved_in_parts__are_reported_as_one_batch_and_named_by_their_own_index():
    reports: list[Progress] = []

    def objective(images, rows):
        return {"distance": torch.where(rows == 3, torch.nan, 1.0) * images.flatten(1).sum(1)}

    with pytest.raises(SynthesisError, match=r"distance of 1 images \(23\)"):
        descend(
            build_prior("pixels", SHAPE),
            starts(),
            objective,
            image_indices=range(20, 24),
            descent=CONFIG,
            device=torch.device("cpu"),
            images_per_pass=2,
            on_progress=reports.append,
        )
    assert [(report.done, report.total) for report in reports] == [(1, 4), (2, 4)]
