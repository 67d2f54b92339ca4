"""Counts of answers against naive ones."""

from __future__ import annotations

import numpy as np
import torch

from dfkd_core.evaluation.predictions import Predictions
from dfkd_tasks.report.counts import class_losses, confusion, largest_pairs

NAMES = [f"class {number}" for number in range(6)]


def draw(seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(6, (200,), generator=torch.Generator().manual_seed(seed)).tolist())


def test_largest_pairs__are_those_of_the_matrix() -> None:
    rows, columns = draw(0), draw(1)
    counts = confusion(rows, columns, 6)
    assert counts.sum() == 200
    assert counts[2, 3] == sum(pair == (2, 3) for pair in zip(rows, columns))
    pairs = largest_pairs(rows, columns, NAMES)
    assert len(pairs) == 20
    expected = np.sort((counts * (1 - np.eye(6, dtype=int))).ravel())[::-1][:20]
    assert [pair.num_images for pair in pairs] == expected.tolist()
    row, column = NAMES.index(pairs[0].row), NAMES.index(pairs[0].column)
    assert pairs[0].share == counts[row, column] / counts[row].sum()
    assert largest_pairs(rows, rows, NAMES) == []


def test_class_losses__are_sorted_and_leave_out_classes_without_images() -> None:
    labels = (0, 0, 1, 1, 3)
    found = class_losses(
        Predictions(student=(0, 1, 1, 1, 0), teacher=(0, 0, 1, 0, 3), labels=labels, images_sha256=""), NAMES
    )
    assert [(one.name, one.teacher, one.student) for one in found] == [
        ("class 3", 1.0, 0.0),
        ("class 0", 1.0, 0.5),
        ("class 1", 0.5, 1.0),
    ]
