"""Export of a student in forms that others can load; each is compared with the student before it is kept.

A form that cannot be made or fails its check is left out, with the reason in the report; the others are kept.

    folder/
    ├── model.safetensors, config.json     for this package and, for a network of timm, for timm
    ├── model.pt2                          torch.export
    ├── model.onnx                         ONNX
    ├── model_int8.pt2, model_int8.onnx    the same two with int8 weights and activations
        ├── preprocessing.json                 how to prepare an image, and the sha256 of every file
        └── export.json                        the checks and their figures

Neither JSON file contains times or paths: the same student, options and package versions produce the same bytes.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from dfkd_core.common.digests import file_sha256, write_json
from dfkd_core.common.output_folders import check_output_folder, finish_replacing, is_vacant, replacing_files
from dfkd_core.common.pixels import quantise
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import ConfigError, ExportError
from dfkd_core.evaluation.labelled_images import EvaluationData
from dfkd_core.export.fidelity import TOLERANCE, measure_fidelity, predict_all
from dfkd_core.export.forms import is_installed
from dfkd_core.export.making import GRAPHS, Checks, Graphs, accuracy_of, make_forms, plan_forms
from dfkd_core.export.report import (
    EXPORT_FILE,
    MADE_BY,
    PREPROCESSING_FILE,
    ExportedForm,
    ExportFormat,
    ExportReport,
    describe_preprocessing,
    find_versions,
    processor_features,
    read_digests,
    unchanged_files,
)
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import model_digest
from dfkd_core.priors.table import build_prior

__all__ = ["check_export_target", "choose_images", "default_formats", "export_model", "probe_images"]

_NUM_CHECKED = 256
_NUM_CALIBRATION = 512
# Batches of one, two and seven images.
_FEWEST_CHECKED = 10


def default_formats() -> tuple[ExportFormat, ...]:
    """Return the formats whose packages are installed."""
    return tuple(name for name in get_args(ExportFormat) if name != "onnx" or is_installed("onnx"))


def check_export_target(out: Path) -> None:
    """Check that a folder is a valid target of an export.

    Raises:
        ConfigError: It cannot be written, or it is not empty and is not an earlier export.
    """
    check_output_folder(out)
    finish_replacing(out, last=EXPORT_FILE)
    if not is_vacant(out) and read_digests(out) is None:
        raise ConfigError(f"--out {out} exists and is not an earlier export. Give a new or an empty folder")


def _check_free(out: Path, names: Iterable[str]) -> None:
    """Refuse to replace files that no earlier export made, or that have changed since."""
    taken = sorted(name for name in set(names) - set(unchanged_files(out)) if os.path.lexists(out / name))
    if taken:
        raise ConfigError(
            f"--out {out} holds {taken[0]}, which the earlier export did not make or which has changed since. Move or "
            "delete it, or give a new or an empty folder"
        )


def probe_images(image_shape: tuple[int, int, int]) -> Tensor:
    """Return uint8 images [256, c, h, w] of generic shapes, the same every time."""
    prior = build_prior("procedural", image_shape)
    return quantise(prior.decode(prior.start(range(_NUM_CHECKED), seed=0, stream="export")))


def choose_images(images: Rows) -> tuple[Tensor, Tensor]:
    """Choose images of a transfer set for the check, and others for the calibration of int8.

    Args:
        images: All images [n, c, h, w].

    Returns:
        At most 256 images, half of the set if it is small, and at most 512 of the others.

    Raises:
        ExportError: There are fewer than two images.
    """
    if len(images) < 2:
        raise ExportError(f"The transfer set has {len(images)} images; an export needs 2 or more. Use a larger one")
    order = torch.randperm(len(images), generator=derive_generator(0, "export", "images"))
    num_checked = min(_NUM_CHECKED, len(images) // 2)
    return images[order[:num_checked]], images[order[num_checked : num_checked + _NUM_CALIBRATION]]


def export_model(
    student: Classifier,
    out: Path,
    *,
    formats: Sequence[ExportFormat],
    images: Tensor,
    bake_preprocessing: bool = False,
    calibration: Tensor | None = None,
    min_agreement: float = 0.9,
    labelled: EvaluationData | LabelledImages | None = None,
    on_file: Callable[[str], None] = lambda file: None,
    describe: Callable[[Sequence[ExportedForm]], Mapping[str, str]] = lambda forms: {},
) -> ExportReport:
    """Write a student in several forms, check every one, and only then put those that passed into `out`.

    The graphs, `pt2` and `onnx`, take any number of images. A form that cannot be made or differs from the student is
    left out; `failures` of the report contains it with the reason.

    Args:
        student: It is moved to the CPU and put into eval mode; its weights and buffers stay.
        out: A new or empty folder, or an earlier export. The earlier export's files are replaced or deleted, unless
            they have changed since; others stay.
        formats: Forms to write.
        images: uint8 images [n, c, h, w] on which every form is compared with the student.
        bake_preprocessing: Whether graphs take images in [0, 1] and normalise them, or take normalised images.
        calibration: uint8 images [n, c, h, w] that determine the ranges of an int8 version of every graph; None for no
            int8 version. Needs torchao.
        min_agreement: Smallest agreement of an int8 form with the student, in [0, 1].
        labelled: Images on which the accuracy of the student and of int8 forms is measured; no check depends on it.
        on_file: Called with the name of each form's file before it is made.
        describe: Returns the texts of further files, such as a model card, by their names.

    Raises:
        ConfigError: `out` cannot be written or holds something else, there is nothing to export, or `min_agreement` is
            not in [0, 1].
        ExportError: No form could be made, or the student's logits are not finite or change from call to call. `out` is
            then unchanged.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dfkd_core import ModelCard, build_classifier, export_model
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> student, images = build_classifier(card, seed=0), torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
        >>> with TemporaryDirectory() as folder:
        ...     report = export_model(student, Path(folder) / "exported", formats=("safetensors",), images=images)
        >>> report.forms[0].file, report.forms[0].fidelity.agreement
        ('model.safetensors', 1.0)
    """
    check_export_target(out)
    if not formats or (calibration is not None and not set(formats) & set(GRAPHS)):
        raise ConfigError("An export needs a format, and int8 needs a graph format. Add: --format pt2")
    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"--min-agreement must be from 0 to 1, got {min_agreement}. Try: --min-agreement 0.9")
    student = student.cpu().eval()
    digest = model_digest(student)
    plans = plan_forms(formats, bake=bake_preprocessing, int8=calibration is not None)
    _check_free(out, [PREPROCESSING_FILE, *(name for plan in plans for name in plan.files)])
    with replacing_files(out, last=EXPORT_FILE, stale=unchanged_files) as folder, _unchanged(student):
        checked = images[torch.arange(max(len(images), _FEWEST_CHECKED)) % len(images)]
        with _unchanged(student):
            logits = _steady_logits(student, checked)
        checks = Checks(images=checked, student_logits=logits, min_agreement=min_agreement, labelled=labelled)
        graphs = Graphs(student, bake=bake_preprocessing, calibration=calibration)
        forms, failures = make_forms(plans, student, graphs, folder, checks, on_file)
        if not forms:
            raise ExportError("; ".join(dict.fromkeys(failure.reason for failure in failures)))
        for name, text in describe(forms).items():
            (folder / name).write_text(text, encoding="utf-8")
        digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / PREPROCESSING_FILE, describe_preprocessing(student.card, forms, digests))
        report = ExportReport(
            made_by=MADE_BY,
            student_digest=digest,
            forms=tuple(forms),
            failures=tuple(failures),
            num_checked_images=len(images),
            max_relative_difference=TOLERANCE,
            num_calibration_images=0 if calibration is None else len(calibration),
            min_agreement=min_agreement,
            num_labelled_images=0 if labelled is None else len(labelled),
            student_accuracy=accuracy_of(student, labelled),
            processor=processor_features(),
            versions=find_versions(forms),
            sha256={**digests, PREPROCESSING_FILE: file_sha256(folder / PREPROCESSING_FILE)},
        )
        _check_free(out, report.sha256)
        write_json(folder / EXPORT_FILE, report)
    return report


@contextmanager
def _unchanged(student: Classifier) -> Iterator[None]:
    """Restore a student's weights and buffers at the end: some networks change buffers whenever they are called."""
    state = copy.deepcopy(student.network.state_dict())
    try:
        yield
    finally:
        student.network.load_state_dict(state)


def _steady_logits(student: Classifier, images: Tensor) -> Tensor:
    """Return the student's logits [n, k].

    Raises:
        ExportError: They are not finite, or change from call to call.
    """
    logits, again = predict_all(student, images), predict_all(student, images)
    if num_bad := int((~torch.isfinite(logits)).any(1).sum()):
        raise ExportError(f"The student's logits hold NaN or Inf for {num_bad} of {len(images)} images. Train it again")
    change = measure_fidelity(again, logits)
    if change.relative_difference > TOLERANCE:
        raise ExportError(
            f"The student's logits for the same images change from call to call, by {change.relative_difference:.2g} "
            "of the largest, so no file can be equivalent to it. Remove random draws and changing buffers from its "
            "forward"
        )
    return logits
