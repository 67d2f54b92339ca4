"""Random shifts, scales, rotations and flips of image batches, drawn from an explicit generator.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.pixels import move_batch
from dfkd_core.sections import Fraction, NonNegative, config_section

__all__ = ["AugmentationConfig", "augment"]

# A torchvision v2 call transforms its whole batch alike, so the batch is split into groups with separate draws.
NUM_GROUPS = 16
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
    """Shift, scale, rotate and mirror images at random.

    Shift, scale and rotation are drawn per group of consecutive images (shuffle the batch before), flips per image.

    Args:
        images: Float images [n, c, h, w] in [0, 1]; not changed.
        config: Kinds and ranges of the changes.
        generator: CPU generator of all random draws.

    Returns:
        Images of the same shape, range and device.
    """
    # Imported here: torchvision takes two seconds, and most commands augment no image.
    from dfkd_core.common.vision import functional_v2

    if config.shift > 0 or config._is_affine:
        groups = images.tensor_split(min(NUM_GROUPS, max(1, len(images))))
        draws = torch.rand(len(groups), 4, generator=generator).mul_(2).sub_(1).tolist()
        if images.is_cuda and not config._is_affine:
            images = _shifted_at_once(images, config, [len(group) for group in groups], draws)
        else:
            move = _transform if config._is_affine else _shift
            images = torch.cat([move(group, config, draw) for group, draw in zip(groups, draws, strict=True)])
    if config.flip:
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        images = torch.where(move_batch(mirrored, images.device), functional_v2.horizontal_flip(images), images)
    return images


def _limits(images: Tensor, config: AugmentationConfig) -> tuple[int, int]:
    """Return the largest shift in whole pixels along height and width."""
    height, width = (math.floor(config.shift * size + _ROUNDING) for size in images.shape[-2:])
    return height, width


def _pixels(draw: float, limit: int) -> int:
    """Map a uniform draw in [-1, 1) to one of the 2 * limit + 1 integer shifts, each equally likely."""
    return int((draw + 1) / 2 * (2 * limit + 1)) - limit


def _shift(images: Tensor, config: AugmentationConfig, draw: list[float]) -> Tensor:
    from dfkd_core.common.vision import functional_v2

    down, right = _limits(images, config)
    padded = functional_v2.pad(images, [right, down])
    top, left = down - _pixels(draw[1], down), right - _pixels(draw[0], right)
    moved: Tensor = functional_v2.crop(padded, top, left, *images.shape[-2:])
    return moved


def _shifted_at_once(
    images: Tensor, config: AugmentationConfig, sizes: Sequence[int], draws: Sequence[Sequence[float]]
) -> Tensor:
    """Return what `_shift` does to each group, as a GPU copies all images faster than it starts 16 copies."""
    down, right = _limits(images, config)
    padded = functional.pad(images, (right, right, down, down))
    corners = [(down - _pixels(draw[1], down), right - _pixels(draw[0], right)) for draw in draws]
    tops, lefts = move_batch(torch.tensor(corners).repeat_interleave(torch.tensor(sizes), dim=0).T, images.device)
    height, width = images.shape[-2:]
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = lefts[:, None] + torch.arange(width, device=images.device)
    image = torch.arange(len(images), device=images.device)
    return padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _transform(images: Tensor, config: AugmentationConfig, draw: list[float]) -> Tensor:
    from dfkd_core.common.vision import functional_v2

    down, right = _limits(images, config)
    moved: Tensor = functional_v2.affine(
        images,
        angle=draw[2] * config.rotation_degrees,
        translate=[_pixels(draw[0], right), _pixels(draw[1], down)],
        scale=1 + draw[3] * config.scale,
        shear=[0.0, 0.0],
        interpolation=functional_v2.InterpolationMode.BILINEAR,
    )
    return moved
