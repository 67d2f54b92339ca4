"""The images of a set that are most alike.

n images, p pairs, v values of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NearestPairs", "nearest_pairs"]

_ROWS_AT_ONCE = 256
_DUPLICATE = 0.01
_LEVELS = 255


@dataclass(frozen=True, slots=True, eq=False)
class NearestPairs:
    """Pairs of images, the nearest first."""

    index: Tensor
    """Positions of the images, the lower first, int64 [p, 2]."""
    distance: Tensor
    """Root mean square difference of their pixels in [0, 1], float32 [p]."""
    num_duplicates: int
    """Pairs of all images that are closer than 0.01."""


def nearest_pairs(pixels: Tensor, most: int) -> NearestPairs:
    """Return the pairs of images with the smallest differences; equal ones are in the order of their positions.

    All sums are integers, so that they are exact and do not depend on the number of threads.

    Args:
        pixels: uint8 [n, ...].
        most: Most pairs p.
    """
    rows = pixels.flatten(1).double()
    count, num_values = rows.shape
    squares = rows.square().sum(1)
    limit = (_DUPLICATE * _LEVELS) ** 2 * num_values
    keys, num_duplicates = torch.empty(0, dtype=torch.int64), 0
    for first in range(0, count, _ROWS_AT_ONCE):
        block = slice(first, min(first + _ROWS_AT_ONCE, count))
        differences = squares[block, None] + squares[first:] - 2 * rows[block] @ rows[first:].T
        low, high = torch.triu_indices(differences.shape[0], differences.shape[1], 1)
        found = differences[low, high]
        num_duplicates += int((found < limit).sum())
        # A number that orders by difference, then by position.
        own = (found.long() * count + low + first) * count + high + first
        keys = torch.cat([keys, own.topk(min(most, len(own)), largest=False).values])
    keys = keys.sort().values[:most]
    index = torch.stack([keys // count % count, keys % count], dim=1) if count else torch.empty(0, 2, dtype=torch.int64)
    differences = (keys // max(1, count) ** 2).double()
    return NearestPairs(index, (differences / num_values).sqrt().div(_LEVELS).float(), num_duplicates)
