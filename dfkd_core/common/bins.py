"""The bins of a confidence: equal widths of (0, 1], closed on the right.

n images.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["bin_indices"]


def bin_indices(confidence: Tensor, num_bins: int) -> Tensor:
    """Return the bin of each confidence, int64 [n] in [0, num_bins).

    Args:
        confidence: Largest probabilities [n] in [0, 1]; 0 belongs to the first bin.
        num_bins: Number of bins.
    """
    return (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
