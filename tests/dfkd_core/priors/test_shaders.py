import math

import pytest
import torch
from torch import Tensor

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fills import rough_fields
from dfkd_core.priors.mosaic import pixel_centres
from dfkd_core.priors.shader_families import FAMILIES, NUM_FIELDS, Canvas, num_family_draws
from dfkd_core.priors.shaders import ShaderPrior

SIZES = [(24, 24), (9, 14)]


def canvas(size: tuple[int, int], channels: int, num_pictures: int = 50) -> Canvas:
    rows = uniform_rows(3, "test", range(num_pictures), (num_family_draws(channels) + NUM_FIELDS * math.prod(size),))
    split = num_family_draws(channels)
    white = rows[:, split:].view(num_pictures, NUM_FIELDS, *size)
    fields = torch.cat([rough_fields(part, torch.full((num_pictures,), 1.5)) for part in white.chunk(2, 1)], 1)
    x, y = (position.expand(num_pictures, *size) for position in pixel_centres(*size))
    return Canvas(x, y, fields, Cursor(rows[:, :split]), channels)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_paints_different_pictures_in_the_unit_range(family, size, channels):
    pictures = family(canvas(size, channels))
    assert pictures.shape == (50, channels, *size)
    assert pictures.isfinite().all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert len(pictures.flatten(1).unique(dim=0)) == 50
    assert (pictures.flatten(1).std(1) > 0.02).float().mean() > 0.8


def neighbours(images: Tensor) -> float:
    """Return the correlation of a pixel with the next one in its row."""
    left, right = images[..., :-1].flatten(), images[..., 1:].flatten()
    return torch.corrcoef(torch.stack([left, right]))[0, 1].item()


def test_images_are_smooth_and_as_colourful_as_photographs():
    images = ShaderPrior((3, 32, 32)).start(range(300), seed=0)
    assert 0.6 < neighbours(images - images.mean((2, 3), keepdim=True)) < 0.99
    chroma, brightness = images.std(1).mean().item(), images.mean(1).std().item()
    assert 0.2 < chroma / brightness < 1
    assert 0.3 < images.mean().item() < 0.7


def test_images_of_one_channel_are_not_blank():
    images = ShaderPrior((1, 32, 32)).start(range(100), seed=0)
    assert (images.flatten(1).std(1) > 0.02).float().mean() > 0.9
