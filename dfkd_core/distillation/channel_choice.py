"""Choice of the channels of a layer to keep: those from which the next layers' outputs are best reconstructed.

As in ThiNet (Luo et al., 2017, arXiv 1707.06342), but with least squares instead of a sum.

c channels, t values that a layer reads from one channel (taps), p = c t, o outputs of a layer. The readers of a channel
are the layers that take it as input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_core.common.least_squares import with_ridge

__all__ = ["Regression", "choose_channels"]

# In wide layers several channels are chosen per step, so that time grows with the square of the width, not the cube.
_MAX_STEPS = 32
_MAX_EXCHANGES = 32


class Regression:
    """Least squares of a reader's outputs on a subset of its input channels, updated as channels enter or leave.

    Holds the ridged covariance of the inputs, swept by the channels of the subset (Beaton's operator in blocks).
    """

    def __init__(self, gram: Tensor, weights: Tensor, width: int) -> None:
        """Start with no channel in the subset.

        Args:
            gram: Covariance of the inputs, float64 [p, p]; modified in place.
            weights: The reader's weights, float64 [p, o].
            width: Number of channels c.
        """
        self.width = width
        self._taps = len(gram) // width
        self._cross = gram @ weights
        self._total = max((weights * self._cross).sum().item(), 1e-300)
        self._gram = with_ridge(gram)

    def values(self) -> Tensor:
        """Return the change in explained variance if each channel were moved, [c], as a share of the outputs' variance.

        Positive or 0 for a channel outside the subset (the gain from adding it), negative or 0 for a channel inside
        (the loss from removing it).
        """
        blocks = self._gram.view(self.width, self._taps, self.width, self._taps).diagonal(dim1=0, dim2=2)
        cross = self._cross.view(self.width, self._taps, -1)
        explained: Tensor = (cross * torch.linalg.solve(blocks.permute(2, 0, 1), cross)).sum((1, 2))
        return explained / self._total

    def move(self, channels: list[int], *, into: bool) -> None:
        """Add channels to the subset, or remove them from it."""
        sign = 1 if into else -1
        taps = (torch.tensor(channels)[:, None] * self._taps + torch.arange(self._taps)).flatten()
        block, rows = self._gram[taps][:, taps], self._gram[taps]
        solved = torch.linalg.solve(block, torch.cat([rows, self._cross[taps]], 1))
        of_gram, of_cross = solved.split([len(self._gram), self._cross.shape[1]], dim=1)
        self._gram.addmm_(rows.T, of_gram, alpha=-1)
        self._cross.addmm_(rows.T, of_cross, alpha=-1)
        self._gram[taps] = sign * of_gram
        self._gram[:, taps] = self._gram[taps].T
        self._gram[taps[:, None], taps] = -torch.linalg.inv(block)
        self._cross[taps] = sign * of_cross


def choose_channels(problems: list[Regression], count: int) -> Tensor:
    """Return the channels, int64 [count] ascending, from which the readers' outputs are best reconstructed.

    Greedy: add the channels with the largest gain first, then exchange single channels as long as this helps.
    """
    is_in = torch.zeros(problems[0].width, dtype=torch.bool)

    def values() -> Tensor:
        return torch.stack([problem.values() for problem in problems]).sum(0)

    def move(channels: list[int], *, into: bool) -> None:
        for problem in problems:
            problem.move(channels, into=into)
        is_in[channels] = into

    at_a_time = -(-count // _MAX_STEPS)
    while (missing := count - int(is_in.sum())) > 0:
        gains = values().masked_fill(is_in, -torch.inf)
        move(gains.topk(min(at_a_time, missing)).indices.tolist(), into=True)
    for _ in range(_MAX_EXCHANGES if count < len(is_in) else 0):
        new = int(values().masked_fill(is_in, -torch.inf).argmax())
        move([new], into=True)
        old = int((-values()).masked_fill(~is_in, torch.inf).argmin())
        move([old], into=False)
        if old == new:
            break
    return is_in.nonzero()[:, 0]
