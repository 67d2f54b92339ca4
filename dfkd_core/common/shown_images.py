"""Images for people: few of a set, and small ones.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfkd_core.common.seeding import derive_generator

__all__ = ["MOST_SHOWN_PX", "shrunk", "spread_positions"]

MOST_SHOWN_PX = 64
"""Largest height and width of an image in a report."""


def spread_positions(num_images: int, most: int) -> Tensor:
    """Return positions that are spread over a set, sorted and different: int64 [min(n, most)].

    One is drawn from each of as many parts of equal size: at equal distances, all could have the same class, since many
    sets repeat their classes. The same numbers give the same positions.

    Args:
        num_images: Images n in the set.
        most: Most positions.
    """
    count = min(num_images, most)
    ends = torch.arange(count + 1) * num_images // max(1, count)
    shares = torch.rand(count, generator=derive_generator(0, "spread", num_images, most), dtype=torch.float64)
    return ends[:-1] + (shares * ends.diff()).long()


def shrunk(pixels: Tensor, most_px: int = MOST_SHOWN_PX) -> Tensor:
    """Return images uint8 [n, c, h, w] with at most `most_px` pixels per side; larger ones are averaged over areas."""
    height, width = pixels.shape[-2:]
    if max(height, width) <= most_px:
        return pixels
    size = [max(1, side * most_px // max(height, width)) for side in (height, width)]
    return interpolate(pixels.float(), size, mode="area").round().to(torch.uint8)
