"""Figures of logits: accuracy, calibration, confusion and divergence.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.bins import bin_indices

__all__ = [
    "LabelScores",
    "confidence_and_class",
    "confusion_matrix",
    "expected_calibration_error",
    "label_scores",
    "mean_kl",
]

_VALUES_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScores:
    """Figures of a model against the true labels."""

    accuracy: float
    """Share of images whose most likely class is the label."""
    ece: float
    """Expected calibration error, see `expected_calibration_error`."""
    per_class_accuracy: tuple[float | None, ...]
    """Share of each class's images that are classified correctly; None for a class without images."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images per true class (row) and predicted class (column)."""


def expected_calibration_error(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> float:
    """Return the sum over bins of (images in the bin / n) * |accuracy - mean confidence|.

    The bins cut the confidence (0, 1] into equal widths, closed on the right (Guo et al., 2017, arXiv 1706.04599,
    equation 3).

    Args:
        logits: Logits [n, k].
        labels: True classes [n].
        num_bins: Number of bins.
    """
    confidence, predicted = confidence_and_class(logits)
    gap = (predicted == labels).double() - confidence
    bins = bin_indices(confidence, num_bins)
    return (torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, gap).abs().sum() / len(labels)).item()


def confidence_and_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest probability of each image, float64 [n], and its class, int64 [n].

    Args:
        logits: Logits [n, k].
    """
    parts = [part.double().softmax(1).max(1) for part in _in_parts(logits)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Count images per true class (row) and most likely class (column): int64 [k, k].

    Args:
        logits: Logits [n, k].
        labels: True classes [n].
    """
    num_classes = logits.shape[1]
    cells = labels * num_classes + logits.argmax(1)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def mean_kl(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Return the mean over images of KL(teacher || student) at temperature 1, in nats.

    Args:
        teacher_logits: Logits [n, k].
        student_logits: Logits [n, k].
    """
    total = 0.0
    for student, teacher in zip(_in_parts(student_logits), _in_parts(teacher_logits), strict=True):
        student_log, teacher_log = student.double().log_softmax(1), teacher.double().log_softmax(1)
        total += functional.kl_div(student_log, teacher_log, log_target=True, reduction="sum").item()
    return total / len(teacher_logits)


def _in_parts(logits: Tensor) -> Sequence[Tensor]:
    """Return logits [n, k] in parts whose copies in double precision take little memory."""
    parts: Sequence[Tensor] = torch.split(logits, max(1, _VALUES_AT_ONCE // logits.shape[1]))
    return parts


def label_scores(logits: Tensor, labels: Tensor, num_bins: int) -> LabelScores:
    """Return the figures of logits [n, k] against labels int64 [n]; `num_bins` as in `expected_calibration_error`."""
    confusion = confusion_matrix(logits, labels)
    hits, totals = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return LabelScores(
        accuracy=sum(hits) / len(labels),
        ece=expected_calibration_error(logits, labels, num_bins=num_bins),
        per_class_accuracy=tuple(hit / total if total else None for hit, total in zip(hits, totals, strict=True)),
        confusion=tuple(map(tuple, confusion.tolist())),
    )
