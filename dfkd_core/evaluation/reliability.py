"""Confidence against the share that is correct, in bins of the confidence: the data of a reliability diagram.

n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dfkd_core.common.bins import bin_indices

__all__ = ["Bin", "reliability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The images whose confidence is in (lower, upper]."""

    lower: float
    """Lower end, in [0, 1)."""
    upper: float
    """Upper end, in (0, 1]."""
    num_images: int
    """Images in the bin, at least one."""
    mean_confidence: float
    """Mean of their confidence."""
    share: float
    """Share of them that is correct."""


def reliability(confidence: Sequence[float], correct: Sequence[bool], *, num_bins: int) -> tuple[Bin, ...]:
    """Return the bins that hold images, by rising confidence; they have equal widths, as in the calibration error.

    With the teacher's confidence, and `correct` where both models give the same class, it is the agreement by the
    teacher's confidence.

    Args:
        confidence: Largest probability of each image [n], in [0, 1].
        correct: Whether each image counts as correct [n].
        num_bins: Number of bins of equal width, at least 1.

    Example:
        >>> from dfkd_core.evaluation.reliability import reliability
        >>> bins = reliability([0.2, 0.9, 1.0], [False, True, False], num_bins=2)
        >>> [(found.num_images, found.share) for found in bins]
        [(1, 0.0), (2, 0.5)]
    """
    confidences = torch.tensor(confidence, dtype=torch.float64)
    bins = bin_indices(confidences, num_bins)
    counts = bins.bincount(minlength=num_bins)
    sums, hits = (
        torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, values)
        for values in (confidences, torch.tensor(correct, dtype=torch.float64))
    )
    return tuple(
        Bin(
            lower=number / num_bins,
            upper=(number + 1) / num_bins,
            num_images=count,
            mean_confidence=float(sums[number]) / count,
            share=float(hits[number]) / count,
        )
        for number, count in enumerate(counts.tolist())
        if count
    )
