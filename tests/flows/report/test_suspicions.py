"""Each warning appears for its fault, and none for a healthy run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.transfer_set.manifest import Manifest
from dfkd_flows.report.suspicions import suspicions

NAMES = ("a", "b", "c", "d")
LABELS = (0, 1, 2, 3) * 500


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "format_version": 2, "method": "soft_target", "method_config": {}, "temperature": 1.0, "teacher_digest": "",
        "statistics_digest": None, "code_version": "", "seed": 0, "num_images": 400, "image_shape": (1, 8, 8),
        "num_classes": 4, "class_histogram": (100, 100, 100, 100), "mean_confidence": 0.7, "target_agreement": 1.0,
        "shards": (),
    }  # fmt: skip
    return Manifest(**{**values, **changes})


def warned(
    *, student: tuple[int, ...] = LABELS, metrics: dict[str, Any] | None = None, duplicates: int = 0, **changes: Any
) -> list[str]:
    predictions = Predictions(student=student, teacher=LABELS, labels=LABELS, images_sha256="")
    found = {"teacher": {"accuracy": 1.0}, **(metrics or {})}
    summary: Any = SimpleNamespace(num_duplicates=duplicates, num_compared=400)
    return list(suspicions(found, predictions, manifest(**changes), summary, NAMES))


def test_healthy_run__has_no_warning() -> None:
    assert warned() == []


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"class_histogram": (0, 400, 0, 0)}, "gives every image of the transfer set the class b"),
        ({"class_histogram": (10, 190, 100, 100)}, "The classes of the transfer set are uneven: classes 0, 1"),
        ({"mean_confidence": 0.999}, "The targets are saturated: the teacher's mean confidence"),
        ({"duplicates": 7}, "near duplicates: 7 pairs among 400 images"),
        ({"metrics": {"notes": ["why"]}}, "The student did not start or train as set: why"),
        ({"metrics": {"teacher": {"accuracy": 0.3}}}, "The teacher itself is right on only 30.00%"),
        ({"metrics": {"labels_ordered_by_name": 1}}, "The labels were put into the teacher's order"),
        ({"student": (1,) * 2000}, "The student gives 100.00% of the evaluated images one class, b"),
        ({"student": (0, 1, 2, 2) * 500}, "The student never answers 1 of the classes that occur: d"),
    ],
)  # fmt: skip
def test_fault__is_named(fault: dict[str, Any], text: str) -> None:
    found = warned(**fault)
    assert any(text in warning for warning in found), found
