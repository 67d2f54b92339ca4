"""Brightness and contrast of drawn images."""

import pytest
import torch

from dfkd_core.errors import ConfigError
from dfkd_core.models.classifier import ModelCard
from dfkd_core.priors.table import build_prior, build_toned_prior
from dfkd_core.priors.tone import Tone, are_pixel_statistics, count_levels, fit_tone
from dfkd_core.synthesis.refinement import RefinementConfig

SHAPE = (1, 16, 16)


def test_a_tone_turns_about_mid_grey_and_is_cut_off():
    images = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    toned = Tone(gain=torch.tensor([2.0]), offset=torch.tensor([0.1])).apply(images)
    assert toned.flatten().tolist() == pytest.approx([0.0, 0.1, 0.6, 1.0])


def test_levels_are_counted_per_image_and_channel():
    images = torch.tensor([[[[0.0, 1.0]], [[1.0, 1.0]]], [[[0.0, 0.0]], [[0.5, 1.0]]]])
    counts = count_levels(images)
    assert counts.shape == (2, 2, 256)
    assert counts[..., [0, 128, 255]].tolist() == [[[1, 0, 1], [0, 0, 2]], [[2, 0, 0], [0, 1, 1]]]


def test_without_cut_off_the_fit_is_the_affine_map_between_the_moments():
    images = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = images.mean().item(), images.std().item()
    tone = fit_tone(count_levels(images).sum(0), [0.4], [std / 2])
    assert tone.gain.item() == pytest.approx(0.5, abs=0.01)
    assert tone.offset.item() == pytest.approx(0.4 - 0.5 - 0.5 * (mean - 0.5), abs=0.01)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.27), (0.33, 0.44), (0.48, 0.24), (0.9, 0.2)])
def test_fitted_pixels_have_the_wanted_moments(mean, std):
    images = build_prior("mixed", (1, 32, 32)).start(range(300), seed=1)
    toned = fit_tone(count_levels(images).sum(0), [mean], [std]).apply(images)
    assert toned.mean().item() == pytest.approx(mean, abs=0.005)
    assert toned.std().item() == pytest.approx(std, abs=0.005)


def test_each_channel_has_its_own_tone():
    images = build_prior("procedural", (3, 16, 16)).start(range(300), seed=1)
    toned = fit_tone(count_levels(images).sum(0), [0.2, 0.5, 0.7], [0.2, 0.1, 0.3]).apply(images)
    assert toned.mean((0, 2, 3)).tolist() == pytest.approx([0.2, 0.5, 0.7], abs=0.01)
    assert toned.std((0, 2, 3)).tolist() == pytest.approx([0.2, 0.1, 0.3], abs=0.01)


def test_a_channel_of_one_level_gets_the_mean():
    images = torch.full((2, 1, 4, 4), 0.5)
    toned = fit_tone(count_levels(images), [0.3], [0.2]).apply(images)
    torch.testing.assert_close(toned, torch.full_like(toned, 0.3), rtol=0, atol=0.01)


def test_each_image_can_have_its_own_tone():
    images = build_prior("mixed", (1, 32, 32)).start(range(20), seed=1)
    images = images[images.flatten(1).std(1) > 0.1]
    toned = fit_tone(count_levels(images), [0.4], [0.2]).apply(images)
    torch.testing.assert_close(toned.mean((1, 2, 3)), torch.full((len(images),), 0.4), rtol=0, atol=0.01)
    torch.testing.assert_close(toned.flatten(1).std(1), torch.full((len(images),), 0.2), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ((0.0,), (1.0,), False),
        ((0.5,), (0.5,), False),
        ((1.0,), (0.1,), False),
        ((0.5, 0.5, 0.5), (0.25, 0.5, 0.25), False),
        ((0.2860,), (0.3530,), True),
        ((0.1307,), (0.3081,), True),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True),
    ],
)
def test_conventions_are_told_from_statistics(mean, std, expected):
    assert are_pixel_statistics(mean, std) is expected


def test_a_share_of_the_images_is_toned_and_the_others_are_as_drawn():
    plain = build_prior("procedural", SHAPE).start(range(400), seed=1)
    toned = build_toned_prior("procedural", SHAPE, share=0.25, mean=(0.2,), std=(0.2,)).start(range(400), seed=1)
    same = (plain == toned).flatten(1).all(1)
    assert 0.65 < same.double().mean() < 0.85
    assert toned[~same].mean().item() == pytest.approx(0.2, abs=0.05)


def test_a_toned_image_does_not_depend_on_the_batch_around_it():
    prior = build_toned_prior("procedural", SHAPE, share=0.5, mean=(0.2,), std=(0.2,))
    together = prior.start(range(20), seed=1)
    alone = torch.cat([prior.start([i], seed=1) for i in range(20)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_images_are_not_cut_off_to_black():
    # Strokes on black, as in MNIST: with one tone for all, two in five would be black.
    images = build_toned_prior("mixed", (1, 32, 32), share=1.0, mean=(0.1,), std=(0.275,)).start(range(400), seed=1)
    assert (images.flatten(1).std(1) < 0.02).double().mean() < 0.03


def card(mean: float, std: float) -> ModelCard:
    return ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(mean,), std=(std,), layer="fc1"
    )


def test_starts_are_toned_for_a_teacher_that_holds_statistics():
    config = RefinementConfig(prior="procedural", toned_share=1.0)
    images = config.build_prior(card(0.2, 0.3)).start(range(300), seed=0)
    assert images.mean().item() == pytest.approx(0.2, abs=0.03)
    plain = build_prior("procedural", (1, 32, 32)).start(range(300), seed=0)
    assert torch.equal(config.build_prior(card(0.5, 0.5)).start(range(300), seed=0), plain)
    untoned = RefinementConfig(prior="procedural")
    assert torch.equal(untoned.build_prior(card(0.2, 0.3)).start(range(300), seed=0), plain)


def test_coefficients_cannot_be_toned():
    with pytest.raises(ConfigError, match="toned_share must be 0 with prior 'fourier'"):
        RefinementConfig(prior="fourier", toned_share=0.5)
