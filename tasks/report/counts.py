"""Counts of the answers of two models: confusion matrices, shares per class, and the pairs that stick out.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfkd_core.evaluation.predictions import Predictions

__all__ = ["MOST_ROWS", "ClassLoss", "Pair", "class_losses", "confusion", "largest_pairs"]

MOST_ROWS = 20
"""Most classes or pairs that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoss:
    """The shares of one class's images that are answered correctly."""

    name: str
    num_images: int
    teacher: float
    student: float

    @property
    def lost(self) -> float:
        """The teacher's share minus the student's."""
        return self.teacher - self.student


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Images of one class that are answered with another."""

    row: str
    column: str
    num_images: int
    share: float
    """Of the images of the row."""


def confusion(rows: Sequence[int], columns: Sequence[int], num_classes: int) -> np.ndarray:
    """Count the images per class of the rows and class of the columns: int64 [k, k]."""
    cells = np.asarray(rows, np.int64) * num_classes + np.asarray(columns, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_losses(predictions: Predictions, names: Sequence[str]) -> list[ClassLoss]:
    """Return the classes that have images, the one on which the student loses most first.

    Without labels the teacher's answers count as true, so that its share is 1.
    """
    truth = np.asarray(predictions.truth)
    totals = np.bincount(truth, minlength=len(names))
    right = [
        np.bincount(truth[np.asarray(answers) == truth], minlength=len(names))
        for answers in (predictions.teacher, predictions.student)
    ]
    found = [
        ClassLoss(
            name=name,
            num_images=int(totals[k]),
            teacher=float(right[0][k] / totals[k]),
            student=float(right[1][k] / totals[k]),
        )
        for k, name in enumerate(names)
        if totals[k]
    ]
    return sorted(found, key=lambda one: -one.lost)


def largest_pairs(rows: Sequence[int], columns: Sequence[int], names: Sequence[str]) -> list[Pair]:
    """Return the most frequent pairs of different classes, the most frequent first; at most 20.

    Args:
        rows: Classes of the n images, as in `confusion`; the matrix itself may be too large.
        columns: Other classes of the same images.
        names: Names of the k classes.
    """
    first, second = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
    differ = first != second
    cells, counts = np.unique(first[differ] * len(names) + second[differ], return_counts=True)
    totals = np.bincount(first, minlength=len(names))
    found = []
    for place in np.argsort(-counts, kind="stable")[:MOST_ROWS]:
        row, column = divmod(int(cells[place]), len(names))
        number = int(counts[place])
        found.append(Pair(row=names[row], column=names[column], num_images=number, share=number / int(totals[row])))
    return found
