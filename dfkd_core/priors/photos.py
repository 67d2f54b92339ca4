"""Strongly augmented crops of two public photographs that belong to no data set.

After Asano & Saeed, "The Augmented Image Prior: Distilling 1000 Classes by Learning from a Single Image", ICLR 2023
(arXiv 2112.00725). The photographs are those that scikit-learn ships for its examples, a temple and a flower.

n images, c channels, h height, w width; lengths in a photograph are in its own pixels unless stated otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dfkd_core.common.pixels import dequantise
from dfkd_core.common.scikit_learn import shipped_file
from dfkd_core.common.seeding import uniform_rows
from dfkd_core.errors import DataError
from dfkd_core.installing import install_packages_command
from dfkd_core.priors.blurring import blur_maps
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.pixels import PixelPrior, paint_in_chunks

__all__ = ["Atlas", "PhotoPrior", "cut_crops", "load_atlas", "num_crop_draws"]

_PHOTOS = ("china.jpg", "flower.jpg")
_NUM_LEVELS = 6
_LEAST_AREA = 0.003
_NUM_GEOMETRY_DRAWS = 10


class PhotoPrior(PixelPrior):
    """Augmented crops of two photographs; refinement then optimises their pixels [n, c, h, w].

    It is data-free in that none of the teacher's data are used and neither photograph belongs to its task. Unlike the
    other priors it uses pictures: state this with any result that rests on it.

    Crops of a log-uniform area, turned, mirrored, stretched; channels mixed, permuted, inverted or turned grey;
    contrast stretched; some blurred.
    """

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw crops, see `ImagePrior.start`.

        Raises:
            DataError: scikit-learn's photographs cannot be read.
        """
        channels, height, width = self._image_shape

        def paint(indices: Sequence[int]) -> torch.Tensor:
            rows = uniform_rows(seed, stream, indices, (num_crop_draws(channels),))
            return cut_crops(rows, (height, width), channels)

        return paint_in_chunks(paint, image_indices, self._image_shape)


def num_crop_draws(channels: int) -> int:
    """Return the uniform numbers that one crop takes."""
    return _NUM_GEOMETRY_DRAWS + 16 + 6 * channels


def cut_crops(rows: torch.Tensor, size: tuple[int, int], channels: int) -> torch.Tensor:
    """Cut and alter one crop per row.

    Args:
        rows: Uniform numbers [n, num_crop_draws(channels)] in [0, 1).
        size: (h, w) of a crop in pixels.
        channels: c.

    Returns:
        [n, c, h, w] in [0, 1].

    Raises:
        DataError: scikit-learn's photographs cannot be read.
    """
    draws = Cursor(rows)
    crops = _sample(load_atlas(), draws, size)
    crops = _mix_channels(crops, channels, draws)
    weight = draws.between(0, 0.3) * draws.chance(0.3)
    return _tone(blur_maps(crops, weight), draws)


@dataclass(frozen=True, slots=True)
class Atlas:
    """All photographs at all sizes, one below the other, so that one call samples from any of them."""

    pixels: torch.Tensor
    """float32 [1, 3, rows, columns] in [0, 1]."""
    tops: torch.Tensor
    """[photos, levels], first row of each picture."""
    sizes: torch.Tensor
    """[photos, levels, 2], height and width of each picture."""


@functools.cache
def load_atlas() -> Atlas:
    """Return the photographs, read at the first call.

    Raises:
        DataError: scikit-learn's photographs cannot be read.
    """
    pyramids = [_pyramid(_load_photo(name)) for name in _PHOTOS]
    pictures = [picture for pyramid in pyramids for picture in pyramid]
    widest = max(picture.shape[2] for picture in pictures)
    pixels = torch.cat([functional.pad(picture, (0, widest - picture.shape[2])) for picture in pictures], 1)
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    tops = sizes[:, 0].cumsum(0) - sizes[:, 0]
    num_photos = len(_PHOTOS)
    return Atlas(pixels[None], tops.view(num_photos, -1).float(), sizes.view(num_photos, -1, 2).float())


def _load_photo(name: str) -> torch.Tensor:
    """Return a photograph [3, h, w] in [0, 1]."""
    # Imported here: no other prior needs Pillow.
    try:
        from PIL import Image

        with Image.open(shipped_file(f"images/{name}"), formats=["JPEG"]) as image:
            picture = np.asarray(image.convert("RGB"))
    except (ImportError, OSError) as error:
        raise DataError(
            f"The photograph {name} that scikit-learn ships cannot be read ({error}). "
            f"Install its packages again, or choose another prior: {install_packages_command('scikit-learn', 'pillow')}"
        ) from error
    return dequantise(torch.from_numpy(picture.copy()).movedim(2, 0))


def _pyramid(photo: torch.Tensor) -> list[torch.Tensor]:
    """Return the photograph at full size and halved repeatedly, so that small copies do not alias."""
    levels = [photo]
    for _ in range(_NUM_LEVELS - 1):
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


def _sample(atlas: Atlas, draws: Cursor, size: tuple[int, int]) -> torch.Tensor:
    """Return crops [n, 3, h, w] with position, size, angle, stretch and handedness drawn."""
    photo = (draws.take() * len(_PHOTOS)).long()
    full = atlas.sizes[photo, 0]
    shorter = full.amin(1)
    side = torch.exp(draws.between(math.log(_LEAST_AREA) / 2, 0)) * shorter
    spread = (full - side[:, None]).clamp_min(0)
    centre = full / 2 + spread * (draws.take(2) - 0.5)
    # Texels of the full size per pixel of the crop; rounding trades half a level of blur for half a level of aliasing.
    level = (side / min(size)).log2().round().clamp(0, _NUM_LEVELS - 1).long()
    y, x = _crop_coordinates(draws, size)
    level_size, halving = atlas.sizes[photo, level], (2.0**-level)[:, None]
    centre, side = centre * halving, side * halving[:, 0]
    rows = _fold(centre[:, 0, None, None] + y * side[:, None, None], level_size[:, 0, None, None])
    columns = _fold(centre[:, 1, None, None] + x * side[:, None, None], level_size[:, 1, None, None])
    grid = torch.stack([columns, rows + atlas.tops[photo, level][:, None, None]], 3)
    grid = grid * (2 / torch.tensor([atlas.pixels.shape[3], atlas.pixels.shape[2]])) - 1
    sampled = functional.grid_sample(atlas.pixels, grid.flatten(0, 1)[None], align_corners=False)
    return sampled[0].view(3, len(photo), *size).transpose(0, 1)


def _crop_coordinates(draws: Cursor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and x [n, h, w] of a crop's pixels about its centre, in crop sides, turned and stretched."""
    height, width = size
    down = ((torch.arange(height) + 0.5 - height / 2) / min(size))[None, :, None]
    along = ((torch.arange(width) + 0.5 - width / 2) / min(size))[None, None]
    turn, is_any = draws.between(-1, 1), draws.chance(0.5)
    # Half the crops stay nearly upright, like most pictures.
    angle = torch.where(is_any, turn, turn / 12)[:, None, None] * math.pi
    stretch = torch.exp(draws.between(-0.35, 0.35))[:, None, None]
    mirror = torch.where(draws.chance(0.5), -1.0, 1.0)[:, None, None]
    cosine, sine = angle.cos(), angle.sin()
    return down * (cosine / stretch) + along * (sine * stretch * mirror), along * (cosine * stretch * mirror) - down * (
        sine / stretch
    )


def _fold(position: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Reflect positions beyond the picture's borders back into it, at least half a texel from each border."""
    folded = (position % (2 * length) - length).abs()
    return torch.minimum((length - folded).clamp_min(0.5), length - 0.5)


def _mix_channels(crops: torch.Tensor, channels: int, draws: Cursor) -> torch.Tensor:
    """Return [n, c, h, w]: for each channel a mean of red, green and blue, saturated, faded or turned grey.

    Half of the images with three channels keep the photograph's channels, in any order.
    """
    weights = draws.take(channels, 3).square() + 0.1
    weights = weights / weights.sum(2, keepdim=True)
    order, is_kept = draws.take(3).argsort(1), draws.chance(0.5)
    if channels == 3:
        weights = torch.where(is_kept[:, None, None], torch.eye(3)[order], weights)
    saturation = draws.between(0.3, 1.5) * ~draws.chance(0.15)
    grey = weights.mean(1, keepdim=True)
    weights = grey + (weights - grey) * saturation[:, None, None]
    return (weights @ crops.flatten(2)).view(len(crops), channels, *crops.shape[2:])


def _tone(crops: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Change contrast and brightness of most crops, invert some, and shift channels against each other."""
    mean = crops.mean((1, 2, 3))
    spread = (crops - mean[:, None, None, None]).square().mean((1, 2, 3)).sqrt().clamp_min(0.01)
    is_stretched, new_spread, new_mean = draws.chance(0.75), draws.between(0.1, 0.4), draws.between(0.2, 0.8)
    gain = torch.where(is_stretched, new_spread / spread, draws.between(0.7, 1.3))
    level = torch.where(is_stretched, new_mean, mean + draws.between(-0.1, 0.1))
    gain = gain * torch.where(draws.chance(0.3), -1.0, 1.0)
    tint = (draws.take(crops.shape[1]) - 0.5) * 0.3
    tint = tint - tint.mean(1, keepdim=True)
    toned = (crops - mean[:, None, None, None]) * gain[:, None, None, None]
    return (toned + (level[:, None] + tint)[:, :, None, None]).clamp_(0, 1)
