"""Rows of a set that is split into several pieces, such as memory-mapped files: only the requested rows are read.

n rows in total, m requested ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dfkd_core.common.memory import memory_at_hand

__all__ = ["CheckRows", "Rows", "ShardedRows", "kept_on_gpu"]

_MOST_OF_FREE_MEMORY = 0.25

CheckRows = Callable[[int, Tensor], None]
"""Takes the index of a piece and the rows [m, ...] that were read from it; raises if they have a fault."""


class Rows(Protocol):
    """A tensor, or an object that can be indexed like one along its first dimension."""

    @property
    def shape(self) -> torch.Size:
        """Shape [n, ...] of all rows."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""

    @property
    def device(self) -> torch.device:
        """Device of the positions and the rows of `__getitem__`."""

    def __len__(self) -> int:
        """Return the number of rows n."""

    def __getitem__(self, positions: Tensor | slice, /) -> Tensor:
        """Return the rows [m, ...] at positions int64 [m] or in a slice."""


def kept_on_gpu(rows: Rows, device: torch.device) -> Rows:
    """Return the rows as a tensor on a GPU if they take at most a quarter of its free memory, else unchanged."""
    if device.type != "cuda":
        return rows
    size = rows.shape.numel() * rows.dtype.itemsize
    return rows[:].to(device) if size <= _MOST_OF_FREE_MEMORY * memory_at_hand(device) else rows


class ShardedRows:
    """The rows of several tensors one after the other, equal to `torch.cat(parts)` in all but memory use."""

    def __init__(self, parts: Sequence[Tensor], check: CheckRows | None = None) -> None:
        """Join tensors on the CPU, at least one, whose rows agree in shape and type.

        The tensors are kept unchanged; rows are read on access, and each time checked by `check`.
        """
        first = parts[0]
        assert all(part.shape[1:] == first.shape[1:] and part.dtype == first.dtype for part in parts)
        self._parts = tuple(parts)
        self._check = check
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self._starts = [0, *self._ends.tolist()]

    @property
    def shape(self) -> torch.Size:
        """Shape [n, ...] of all rows."""
        return torch.Size((len(self), *self._parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self._parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return self._parts[0].device

    def __len__(self) -> int:
        """Return the number of rows n."""
        return int(self._starts[-1])

    def __getitem__(self, index: Tensor | slice | int, /) -> Tensor:
        """Return a copy of rows.

        Args:
            index: Positions int64 [m] in [-n, n) in any order, a slice, or one position.

        Returns:
            [m, ...], or [...] for one position.

        Raises:
            IndexError: A position is out of range, or positions are of another type or shape.
        """
        if isinstance(index, slice):
            return self._gather(torch.arange(len(self))[index])
        if isinstance(index, int):
            return self._gather(self._checked(torch.tensor([index])))[0]
        return self._gather(self._checked(index))

    def _checked(self, positions: Tensor) -> Tensor:
        if positions.dtype != torch.int64 or positions.dim() != 1:
            raise IndexError(f"positions must be int64 [m], got {positions.dtype} {list(positions.shape)}")
        n = len(self)
        if len(positions) and not -n <= int(positions.min()) <= int(positions.max()) < n:
            raise IndexError(f"positions range from {positions.min()} to {positions.max()}, but there are {n} rows")
        return torch.where(positions < 0, positions + n, positions)

    def _gather(self, positions: Tensor) -> Tensor:
        """Read rows piece by piece, each in the order of the file, and return them in the requested order."""
        ordered, order = positions.sort()
        counts = torch.bincount(torch.bucketize(ordered, self._ends, right=True), minlength=len(self._parts)).tolist()
        rows = torch.empty(len(positions), *self.shape[1:], dtype=self.dtype)
        first = 0
        for index, (part, start, count) in enumerate(zip(self._parts, self._starts, counts)):
            if count:
                last = first + count
                read = part[ordered[first:last] - start]
                if self._check:
                    self._check(index, read)
                rows[order[first:last]] = read
                first = last
        return rows
