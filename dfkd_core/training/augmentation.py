"""Random shifts, scales, rotations and flips of image batches, drawn from an explicit generator.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.pixels import move_batch
from dfkd_core.sections import Fraction, NonNegative, config_section

__all__ = ["AugmentationConfig", "augment"]

# In floating point, a share such as 0.1 of 30 pixels is not exactly 3.
_ROUNDING = 1e-6


@config_section
class AugmentationConfig:
    """How training images are augmented; the default does not change them."""

    shift: Fraction = 0.0
    """Largest shift along each axis as a share of the image's size, rounded down to whole pixels; 0.0625 is 2 pixels of
    32. Uncovered pixels are black."""
    scale: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Largest relative change of size: 0.1 draws factors from 0.9 to 1.1."""
    rotation_degrees: NonNegative = 0.0
    """Largest rotation in degrees, in both directions."""
    flip: bool = False
    """Mirror each image left to right with probability 1/2."""

    @property
    def is_active(self) -> bool:
        """Whether any image can change."""
        return self.flip or self.shift > 0 or self._is_affine

    @property
    def _is_affine(self) -> bool:
        return self.scale > 0 or self.rotation_degrees > 0


def augment(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Shift, scale, rotate and mirror images at random, each by its own draws.

    Args:
        images: Float images [n, c, h, w] in [0, 1]; not changed.
        config: Kinds and ranges of the changes.
        generator: CPU generator of all random draws.

    Returns:
        Images of the same shape, range and device; channels that come last stay last.
    """
    if len(images) and (config.shift > 0 or config._is_affine):
        draws = torch.rand(len(images), 4, generator=generator)
        images = (_transform if config._is_affine else _shift)(images, config, draws)
    if config.flip:
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        images = torch.where(move_batch(mirrored, images.device), images.flip(3), images)
    return images


def _offsets(images: Tensor, config: AugmentationConfig, draws: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Return each image's shift to the right and downwards in whole pixels, int64 [n], and the largest of both.

    Args:
        images: [n, c, h, w].
        config: Its `shift` limits the shifts; all whole pixels up to the limit are equally likely.
        draws: Uniform numbers [n, 2 or more] in [0, 1).
    """
    down, right = (math.floor(config.shift * size + _ROUNDING) for size in images.shape[-2:])
    across, along = ((draws[:, i] * (2 * most + 1)).long() - most for i, most in enumerate((right, down)))
    return across, along, right, down


def _shift(images: Tensor, config: AugmentationConfig, draws: Tensor) -> Tensor:
    across, along, right, down = _offsets(images, config, draws)
    padded = functional.pad(images, (right, right, down, down)).permute(0, 2, 3, 1)
    height, width = images.shape[-2:]
    # All windows as a view: one indexing copies the chosen one of each image, pixel rows at a time.
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    corners = torch.stack([torch.arange(len(images)), down - along, right - across])
    return windows[tuple(move_batch(corners, images.device))].permute(0, 3, 1, 2)


def _transform(images: Tensor, config: AugmentationConfig, draws: Tensor) -> Tensor:
    across, along, _, _ = _offsets(images, config, draws)
    height, width = images.shape[-2:]
    angle, factor = (2 * draws[:, 2:] - 1).unbind(1)
    angle, factor = angle * math.radians(config.rotation_degrees), 1 + config.scale * factor
    # The map from a moved image's pixels back to the image's, with both sides from -1 to 1.
    cosine, sine = angle.cos() / factor, angle.sin() / factor
    turn = torch.stack([cosine, sine * (height / width), -sine * (width / height), cosine], 1).view(-1, 2, 2)
    moves = torch.stack([across * (2 / width), along * (2 / height)], 1)
    maps = torch.cat([turn, -turn @ moves[:, :, None]], 2).to(images.dtype)
    grid = _grid(move_batch(maps, images.device), height, width)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def _grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Return what `functional.affine_grid` returns for affine maps [n, 2, 3], in a quarter of its time on a CPU."""
    x, y = ((2 * torch.arange(size, device=maps.device) + 1) / size - 1 for size in (width, height))
    by_column = maps[:, :, 0, None, None] * x
    by_row = maps[:, :, 1, None] * y + maps[:, :, 2, None]
    grid = maps.new_empty(len(maps), height, width, 2)
    torch.add(by_column, by_row[..., None], out=grid.permute(0, 3, 1, 2))
    return grid
