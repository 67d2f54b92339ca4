"""Columns of the table of `architectures.py` for the exported forms: pt2, ONNX and int8.

BatchNorm first learns the statistics of generic images, as after training. The network is then exported as a student
is, with all checks: float32 forms differ from it by at most 1e-4 of its largest logit, int8 forms answer at least 90 %
of the images with its class. int8 counts if both int8 files pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from dfkd_core.errors import DfkdError
from dfkd_core.export.run import choose_images, export_model, probe_images
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.teacher import Teacher

# Half of them are checked, the others calibrate int8.
NUM_IMAGES = 64
NUM_PASSES = 10
BATCH_SIZE = 32


class Subject(Protocol):
    """A loaded network with random weights."""

    @property
    def teacher(self) -> Teacher:
        """The network."""

    @property
    def scratch(self) -> Path:
        """Folder for temporary files."""


def pt2(subject: Subject) -> str:
    """Return why there is no `model.pt2`, empty if there is."""
    return _failures(subject.teacher, subject.scratch).get("model.pt2", "")


def onnx(subject: Subject) -> str:
    """Return why there is no `model.onnx`, empty if there is."""
    return _failures(subject.teacher, subject.scratch).get("model.onnx", "")


def int8(subject: Subject) -> str:
    """Return why there is no `model_int8.pt2` or no `model_int8.onnx`, empty if there are both."""
    failures = _failures(subject.teacher, subject.scratch)
    return failures.get("model_int8.pt2", "") or failures.get("model_int8.onnx", "")


EXPORT_COLUMNS: Mapping[str, Callable[[Subject], str]] = {"pt2": pt2, "ONNX": onnx, "int8": int8}


@lru_cache(maxsize=1)
def _failures(teacher: Teacher, scratch: Path) -> dict[str, str]:
    """Return the reason of every form that could not be made, by its file."""
    student = _with_statistics(teacher.classifier)
    checked, calibration = choose_images(probe_images(student.card.image_shape)[:NUM_IMAGES])
    try:
        report = export_model(
            student, scratch / "exported", formats=("pt2", "onnx"), images=checked, calibration=calibration
        )
    except DfkdError as error:
        files = ("model.pt2", "model.onnx", "model_int8.pt2", "model_int8.onnx")
        return dict.fromkeys(files, str(error))
    return {failure.file: failure.reason for failure in report.failures}


def _with_statistics(classifier: Classifier) -> Classifier:
    """Return a copy whose BatchNorm has the statistics of generic images."""
    student = copy.deepcopy(classifier).train()
    images = probe_images(student.card.image_shape)[:NUM_IMAGES] / 255
    with torch.no_grad():
        for number in range(NUM_PASSES):
            student(images.roll(number * BATCH_SIZE, 0)[:BATCH_SIZE])
    return student.eval()
