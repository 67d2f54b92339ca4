"""How certain a calibration error is.

n images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfkd_core.common.bins import bin_indices
from dfkd_core.common.seeding import derive_generator
from dfkd_core.evaluation.intervals import Z_95

__all__ = ["calibration_interval"]

_NUM_DRAWS = 2000


def calibration_interval(
    error: float, confidence: Sequence[float], correct: Sequence[bool], *, num_bins: int
) -> tuple[float, float]:
    """Return the interval of 95 % of an expected calibration error, in [0, 1].

    The error is the sum over bins of |the sum of correct - confidence| / n. If other images were drawn, each bin's sum
    would vary like a normal number whose variance is the sum of squares in the bin. The interval is the error plus and
    minus 1.96 standard deviations of 2,000 errors that are drawn this way, always with the same numbers.

    Args:
        error: The error itself.
        confidence: Largest probability of each image [n], in [0, 1].
        correct: Whether the most likely class is the label [n].
        num_bins: Bins of equal width.
    """
    confidences = torch.tensor(confidence, dtype=torch.float64)
    gaps = torch.tensor(correct, dtype=torch.float64) - confidences
    bins = bin_indices(confidences, num_bins)
    sums, squares = (
        torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, values) for values in (gaps, gaps.square())
    )
    numbers = torch.randn(
        _NUM_DRAWS, num_bins, dtype=torch.float64, generator=derive_generator(0, "calibration interval")
    )
    drawn = (sums + squares.sqrt() * numbers).abs().sum(1) / len(gaps)
    half_width = Z_95 * drawn.std().item()
    return max(0.0, error - half_width), min(1.0, error + half_width)
