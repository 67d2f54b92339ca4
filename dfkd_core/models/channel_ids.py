"""Ids of channels in sets that can be joined, and small operations on tensors of ids; 0 is no channel.

r rows, c columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ChannelIds", "along", "extremes", "rows_of", "single", "without_repeats"]


class ChannelIds:
    """Makes ids and joins sets of them; the smallest id of a set stands for all of it."""

    def __init__(self) -> None:
        self._smallest = torch.zeros(1, dtype=torch.int64)

    def fresh(self, count: int) -> Tensor:
        """Return new ids [count]."""
        found = torch.arange(len(self._smallest), len(self._smallest) + count)
        self._smallest = torch.cat([self._smallest, found])
        return found

    def find(self, ids: Tensor) -> Tensor:
        """Return the smallest id of each one's set, of the same shape."""
        layout = without_repeats(ids)
        return self._smallest[layout].expand(ids.shape)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Join the sets of the ids at equal positions; 0 joins nothing."""
        while True:
            a, b = self.find(first), self.find(second)
            differ = (a != b) & (a != 0) & (b != 0)
            if not differ.any():
                return
            low, high = torch.minimum(a[differ], b[differ]), torch.maximum(a[differ], b[differ])
            self._smallest.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(self._smallest, found := self._smallest[self._smallest]):
                self._smallest = found

    def tied_down(self, rows: Tensor) -> Tensor:
        """Join the ids in each column of rows [r, c]; return one per column, [c]."""
        top = rows.amax(0)
        self.tie(rows, top.expand_as(rows))
        return self.find(top)

    def tied(self, given: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Join the ids of tensors that are combined element by element; return those of the result.

        One value for all channels, such as a mask over positions, belongs to none of them and is not joined.
        """
        every = [self.find(ids) for ids in given]
        kept = [ids for ids in every if not any(_is_for_all(ids, other, shape) for other in every)]
        small = _without_shared_repeats([ids.expand(shape) for ids in kept])
        base = torch.zeros(1, dtype=torch.int64)
        for ids in small:
            self.tie(base.expand(ids.shape), ids)
            base = torch.where(base == 0, ids, base)
        return base.expand(shape)


def along(ids: Tensor, dimension: int, rank: int) -> Tensor:
    """Return ids [c] as a tensor of this rank with c values along a dimension and one along the others."""
    shape = [1] * rank
    shape[dimension] = len(ids)
    return ids.view(shape)


def extremes(ids: Tensor, dimension: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the smallest id that is not 0, or 0 if there is none, and the largest one along dimensions."""
    none = torch.iinfo(torch.int64).max
    low = torch.where(ids == 0, none, ids).amin(dimension)
    return torch.where(low == none, 0, low), ids.amax(dimension)


def single(ids: Tensor, dimension: int | tuple[int, ...]) -> Tensor:
    """Return the id along dimensions if there is only one, otherwise 0."""
    low, high = extremes(ids, dimension)
    return torch.where(low == high, high, 0)


def without_repeats(ids: Tensor) -> Tensor:
    """Return ids with one value along each dimension in which an expanded tensor repeats them."""
    (small,) = _without_shared_repeats([ids])
    return small


def rows_of(ids: Tensor, dimension: int) -> Tensor:
    """Return ids as rows along a dimension, [r, c], without equal rows that an expanded tensor repeats."""
    rows = ids.movedim(dimension, -1)
    for other in range(rows.dim() - 1):
        if rows.stride(other) == 0:
            rows = rows.narrow(other, 0, 1)
    return rows.flatten(0, -2)


def _without_shared_repeats(given: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one shape with one value along each dimension in which all of them repeat theirs."""
    found = list(given)
    for dimension in range(found[0].dim() if found else 0):
        if found[0].shape[dimension] > 1 and all(ids.stride(dimension) == 0 for ids in found):
            found = [ids.narrow(dimension, 0, 1) for ids in found]
    return found


def _is_for_all(ids: Tensor, other: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether another tensor has its channels along a dimension in which this one has a single value.

    There, most ids differ. Along positions there may be a few, such as those of a class token and of patches.
    """
    own = (1,) * (len(shape) - ids.dim()) + tuple(ids.shape)
    repeated = [d for d, (size, whole) in enumerate(zip(own, shape)) if size == 1 < whole]
    if not repeated or other is ids:
        return False
    whole = without_repeats(other.expand(shape))
    return any(_are_mostly_different(whole, dimension) for dimension in repeated)


def _are_mostly_different(ids: Tensor, dimension: int) -> bool:
    num_different = (ids.sort(dimension).values.diff(dim=dimension) != 0).sum(dimension) + 1
    size = ids.shape[dimension]
    return size > 1 and bool(2 * num_different.max() > size)
