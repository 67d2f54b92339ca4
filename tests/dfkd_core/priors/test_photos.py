from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

from dfkd_core.errors import DataError
from dfkd_core.priors import photos
from dfkd_core.priors.photos import PhotoPrior, cut_crops, num_crop_draws

# The first photograph, its largest square about the middle, upright, not stretched, not mirrored, its own colours,
# not blurred, its own contrast. The keys are in the order of the columns.
AS_IT_IS: dict[str, float | list[float]] = {
    "photo": 0.0,
    "area": 1.0,
    "centre": [0.5, 0.5],
    "angle": 0.5,
    "is at any angle": 0.9,
    "stretch": 0.5,
    "is upright": 0.9,
    "channel weights": 0.5,
    "channel order": [0.1, 0.5, 0.9],
    "has own channels": 0.1,
    "saturation": 0.7 / 1.2,
    "is in colour": 0.9,
    "blur": 0.5,
    "is sharp": 0.9,
    "has own contrast": 0.9,
    "new contrast": 0.5,
    "new mean": 0.5,
    "gain": 0.5,
    "level": 0.5,
    "is not inverted": 0.9,
    "tint": 0.5,
}


def rows_of(count: int = 1, *, channels: int = 3, drawn: tuple[str, ...] = (), **changes: float) -> Tensor:
    """Uniform numbers of crops that are as the photograph, but for what is changed or drawn anew for each."""
    generator = torch.Generator().manual_seed(0)
    widths = {"centre": 2, "channel weights": 3 * channels, "channel order": 3, "tint": channels}
    columns = []
    for name, value in (AS_IT_IS | {key.replace("_", " "): value for key, value in changes.items()}).items():
        width = widths.get(name, 1)
        drawn_columns = torch.rand(count, width, generator=generator)
        columns.append(drawn_columns if name in drawn else torch.as_tensor(value).float().expand(count, width))
    rows = torch.cat(columns, 1)
    return functional.pad(rows, (0, num_crop_draws(channels) - rows.shape[1]))


@pytest.fixture(scope="module")
def square() -> Tensor:
    photo = torch.tensor(load_sample_image("china.jpg")).movedim(2, 0).float() / 255
    left = (photo.shape[2] - photo.shape[1]) // 2
    return photo[:, :, left : left + photo.shape[1]]


def test_a_crop_at_full_size_is_the_photograph(square: Tensor) -> None:
    crop = cut_crops(rows_of(), (square.shape[1], square.shape[2]), 3)[0]
    # The photograph is an odd number of columns wider than high, so that the crop lies half a column off.
    shifted = (square[:, :, :-1] + square[:, :, 1:]) / 2
    torch.testing.assert_close(crop[:, :, :-1], shifted, atol=2e-3, rtol=0)


def test_a_mirrored_crop_is_the_crop_from_right_to_left() -> None:
    crops = cut_crops(torch.cat([rows_of(), rows_of(is_upright=0.1)]), (64, 64), 3)
    torch.testing.assert_close(crops[1], crops[0].flip(2), atol=1e-4, rtol=0)


def test_a_small_crop_is_an_average_and_not_a_pick_of_pixels(square: Tensor) -> None:
    average = functional.adaptive_avg_pool2d(square, 32)
    picked = functional.interpolate(square[None], 32, mode="nearest")[0]
    crop = cut_crops(rows_of(), (32, 32), 3)[0]
    assert (crop - average).abs().mean() < 0.4 * (picked - average).abs().mean()


def test_what_lies_beyond_the_border_is_reflected(square: Tensor) -> None:
    size = square.shape[1]
    crop = cut_crops(rows_of(stretch=0.0), (size, size), 3)[0]
    # 1.42 times as much of the photograph from top to bottom: 63 of the crop's 427 rows lie above it, 63 below.
    for end in (crop, crop.flip(1)):
        torch.testing.assert_close(end[:, :60], end[:, 66:126].flip(1), atol=0.4, rtol=0)
        assert (end[:, :60] - end[:, 66:126].flip(1)).abs().mean() < 0.02
        assert (end[:, :60] - end[:, 126:186].flip(1)).abs().mean() > 0.04


def test_a_single_channel_is_a_mean_of_the_photographs_channels() -> None:
    own = cut_crops(rows_of(), (8, 8), 3)
    grey = cut_crops(rows_of(50, channels=1, drawn=("channel weights",)), (8, 8), 1)
    assert grey.shape == (50, 1, 8, 8)
    assert (grey >= own.amin(1, keepdim=True) - 1e-4).all()
    assert (grey <= own.amax(1, keepdim=True) + 1e-4).all()
    assert (grey.flatten(1).std(0) > 0.001).any()


def test_three_channels_are_those_of_the_photograph_in_any_order() -> None:
    own = cut_crops(rows_of(), (8, 8), 3)
    crops = cut_crops(rows_of(60, drawn=("channel order",)), (8, 8), 3)
    torch.testing.assert_close(crops.sort(1).values, own.sort(1).values.expand_as(crops), atol=1e-4, rtol=0)
    brightest = crops.mean((2, 3)).argmax(1)
    assert (torch.bincount(brightest, minlength=3) > 6).all()


def test_some_crops_of_three_channels_are_grey() -> None:
    drawn = ("channel weights", "channel order", "has own channels", "saturation", "is in colour")
    crops = cut_crops(rows_of(200, drawn=drawn), (8, 8), 3)
    is_grey = crops.std(1).amax((1, 2)) < 1e-5
    assert is_grey.float().mean() == pytest.approx(0.15, abs=0.08)


def test_tones_reach_the_drawn_spread_and_mean() -> None:
    own = cut_crops(rows_of(channels=1), (16, 16), 1)
    # Stretched to a spread of 0.1 about 0.5 and inverted.
    changes: dict[str, Any] = {"has_own_contrast": 0.0, "new_contrast": 0.0, "is_not_inverted": 0.0}
    toned = cut_crops(rows_of(channels=1, **changes), (16, 16), 1)
    assert toned.mean().item() == pytest.approx(0.5, abs=1e-4)
    assert toned.square().mean().sub(toned.mean() ** 2).sqrt().item() == pytest.approx(0.1, abs=1e-4)
    assert torch.corrcoef(torch.stack([toned.flatten(), own.flatten()]))[0, 1] < -0.999


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_few_crops_are_blank(channels: int) -> None:
    images = PhotoPrior((channels, 24, 24)).start(range(300), seed=0)
    assert (images.flatten(1).std(1) < 0.02).float().mean() < 0.05


@pytest.fixture
def no_photograph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let scikit-learn have none of its photographs, and nothing be kept of them."""

    def missing(name: str) -> Path:
        raise FileNotFoundError(f"scikit-learn has no {name}")

    monkeypatch.setattr(photos, "shipped_file", missing)
    photos.load_atlas.cache_clear()
    yield
    photos.load_atlas.cache_clear()


@pytest.mark.usefixtures("no_photograph")
def test_a_missing_photograph_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"china\.jpg.*pip install .scikit-learn>=1.5. .pillow>=10"):
        PhotoPrior((1, 8, 8)).start([0], seed=0)
