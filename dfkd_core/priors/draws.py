"""Named access to a flat row of uniform numbers per image or per shape."""

from __future__ import annotations

import torch

__all__ = ["Cursor"]


class Cursor:
    """Returns the columns of uniform numbers in order, so that later draws never shift earlier ones."""

    def __init__(self, rows: torch.Tensor) -> None:
        """Start at the first column of `rows`, [m, columns] in [0, 1)."""
        self._rows = rows
        self._position = 0

    def take(self, *shape: int) -> torch.Tensor:
        """Return the next numbers as [m, *shape] in [0, 1)."""
        count = int(torch.Size(shape).numel())
        assert self._position + count <= self._rows.shape[1], "more columns used than were drawn"
        columns = self._rows[:, self._position : self._position + count]
        self._position += count
        return columns.reshape(len(columns), *shape)

    def between(self, low: float, high: float) -> torch.Tensor:
        """Return the next number scaled to [low, high), [m]."""
        return low + (high - low) * self.take()

    def chance(self, probability: float) -> torch.Tensor:
        """Return whether the next number falls below `probability`, bool [m]."""
        return self.take() < probability

    def choice(self, *weights: float) -> torch.Tensor:
        """Return the next number as an index drawn with these weights, int64 [m]."""
        edges = torch.tensor(weights).cumsum(0) / sum(weights)
        return torch.bucketize(self.take().contiguous(), edges[:-1], right=True)
