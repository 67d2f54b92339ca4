import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional

from dfkd_core.errors import DataError
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.photos import PhotoPrior, _fold, _load_atlas, _load_photo, _mix_channels, _sample, _tone

# The first photograph, its largest square about the middle, upright, not stretched, not mirrored.
MIDDLE = torch.tensor([[0.0, 1.0, 0.5, 0.5, 0.5, 0.9, 0.5, 0.9]])


@pytest.fixture(scope="module")
def square():
    photo = torch.tensor(load_sample_image("china.jpg")).movedim(2, 0).float() / 255
    left = (photo.shape[2] - photo.shape[1]) // 2
    return photo[:, :, left : left + photo.shape[1]]


def test_a_crop_at_full_size_is_the_photograph(square):
    crop = _sample(_load_atlas(), Cursor(MIDDLE), square.shape[1:])[0]
    # The photograph is an odd number of columns wider than high, so that the crop lies half a column off.
    shifted = (square[:, :, :-1] + square[:, :, 1:]) / 2
    torch.testing.assert_close(crop[:, :, :-1], shifted, atol=2e-3, rtol=0)


def test_a_mirrored_crop_is_the_crop_from_right_to_left():
    mirrored = MIDDLE.clone()
    mirrored[:, 7] = 0.1
    crops = _sample(_load_atlas(), Cursor(torch.cat([MIDDLE, mirrored])), (64, 64))
    torch.testing.assert_close(crops[1], crops[0].flip(2), atol=1e-4, rtol=0)


def test_a_small_crop_is_an_average_and_not_a_pick_of_pixels(square):
    average = functional.adaptive_avg_pool2d(square, 32)
    picked = functional.interpolate(square[None], 32, mode="nearest")[0]
    crop = _sample(_load_atlas(), Cursor(MIDDLE), (32, 32))[0]
    assert (crop - average).abs().mean() < 0.4 * (picked - average).abs().mean()


def test_positions_beyond_the_border_are_reflected():
    positions = torch.tensor([-3.0, -0.1, 0.5, 4.0, 9.9, 11.0, 20.5, 23.0])
    folded = _fold(positions, torch.tensor(10.0))
    torch.testing.assert_close(folded, torch.tensor([3.0, 0.5, 0.5, 4.0, 9.5, 9.0, 0.5, 3.0]))


def test_channels_are_means_of_the_photographs_channels():
    crops = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1).expand(200, -1, 4, 4).contiguous()
    rows = torch.rand(200, 40, generator=torch.Generator().manual_seed(0))
    grey = _mix_channels(crops, 1, Cursor(rows))
    assert grey.shape == (200, 1, 4, 4)
    assert grey.min() >= 0.2
    assert grey.max() <= 0.8
    colours = _mix_channels(crops, 3, Cursor(rows))[:, :, 0, 0]
    assert (colours.std(1) < 1e-5).float().mean() == pytest.approx(0.15, abs=0.08)
    # Orders of the channels: every one of them is the brightest at times.
    assert (torch.bincount(colours.argmax(1), minlength=3) > 20).all()


def test_tones_reach_the_drawn_spread_and_mean():
    crops = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    # Stretched to a spread of 0.1 about 0.5, inverted, no tint.
    rows = torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.5]])
    toned = _tone(crops, Cursor(rows))
    assert toned.mean().item() == pytest.approx(0.5, abs=1e-4)
    assert toned.square().mean().sub(toned.mean() ** 2).sqrt().item() == pytest.approx(0.1, abs=1e-4)
    assert torch.corrcoef(torch.stack([toned.flatten(), crops.flatten()]))[0, 1] < -0.999


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_few_crops_are_blank(channels):
    images = PhotoPrior((channels, 24, 24)).start(range(300), seed=0)
    assert (images.flatten(1).std(1) < 0.02).float().mean() < 0.05


def test_a_missing_photograph_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"nothing\.jpg.*pip install scikit-learn pillow"):
        _load_photo("nothing.jpg")
