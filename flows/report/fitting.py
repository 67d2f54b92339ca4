"""Whether the files of a student's results belong together: each is whole, but one may be of other results.

n evaluated images, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.disagreements import Disagreements
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.transfer_set.manifest import Manifest
from dfkd_core.transfer_set.summary import SetSummary

__all__ = ["check_disagreements", "check_manifest", "check_predictions", "check_summary"]


def check_predictions(path: Path, found: Predictions, num_classes: int) -> None:
    """Check that all answers and labels are of the k classes.

    Raises:
        DfkdError: One is not.
    """
    classes = {*found.student, *found.teacher, *(found.labels or ())}
    _check(path, (f"it has the class {k}, and there are {num_classes}" for k in classes if not 0 <= k < num_classes))


def check_disagreements(path: Path, found: Disagreements | None, num_images: int) -> None:
    """Check that all images are among the n evaluated ones, and can be shown.

    Raises:
        DfkdError: One is not.
    """
    if found is not None:
        places = (place for place in found.index.tolist() if not 0 <= place < num_images)
        _check(path, (f"it has the image {place}, and {num_images} were evaluated" for place in places))
        _check(path, _image_faults(found.images.shape))


def check_manifest(path: Path, found: Manifest, num_classes: int) -> None:
    """Check that a transfer set has k classes.

    Raises:
        DfkdError: It has others.
    """
    _check(path, _class_faults(found.num_classes, num_classes))


def check_summary(path: Path, found: SetSummary | None, num_classes: int) -> None:
    """Check that the facts about a transfer set are of k classes, and of images that can be shown.

    Raises:
        DfkdError: They are not.
    """
    if found is not None:
        _check(path, _class_faults(len(found.class_counts), num_classes))
        _check(path, _image_faults(found.sample_images.shape))


def _class_faults(found: int, num_classes: int) -> Iterator[str]:
    if found != num_classes:
        yield f"it has {found} classes, and the teacher has {num_classes}"


def _image_faults(shape: tuple[int, ...]) -> Iterator[str]:
    if 0 in shape[1:]:
        yield f"its images have the shape {tuple(shape[1:])}"


def _check(path: Path, faults: Iterator[str]) -> None:
    for fault in faults:
        raise DfkdError(f"{path} is not of these results: {fault}. Make it again with: rm {path}; dfkd run")
