"""Export of a student in forms that others can load; each is compared with the student before it is kept.

    folder/
    ├── model.safetensors, config.json     for this package; takes images in [0, 1]
    ├── model.pt2                          torch.export
    ├── model.onnx                         ONNX
    ├── model_int8.pt2, model_int8.onnx    the same two with int8 weights and activations
        ├── preprocessing.json                 how to prepare an image, and the sha256 of every file
        └── export.json                        the checks and their figures

Neither JSON file contains times or paths: the same student, options and package versions produce the same bytes.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dfkd_core.common.digests import file_sha256, write_json
from dfkd_core.common.output_folders import check_output_folder, is_vacant, replacing_files
from dfkd_core.common.pixels import load_batch, quantise
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import ConfigError, ExportError
from dfkd_core.evaluation.labelled_images import EvaluationData
from dfkd_core.export.fidelity import Fidelity, Predict, check_fidelity, measure_fidelity, predict_all
from dfkd_core.export.forms import (
    ONNX_SETTINGS,
    capture,
    graph_of,
    is_installed,
    needing,
    read_onnx,
    read_pt2,
    read_safetensors,
    write_onnx,
    write_pt2,
)
from dfkd_core.export.report import (
    EXPORT_FILE,
    MADE_BY,
    PREPROCESSING_FILE,
    ExportedForm,
    ExportFormat,
    ExportReport,
    Precision,
    describe_preprocessing,
    find_versions,
    processor_features,
    read_digests,
    unchanged_files,
)
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import CONFIG_FILE, model_digest, save_model
from dfkd_core.priors.table import build_prior

__all__ = [
    "TOLERANCE",
    "check_export_target",
    "choose_images",
    "default_formats",
    "export_model",
    "probe_images",
]

_NUM_CHECKED = 256
_NUM_CALIBRATION = 512
_CALIBRATION_BATCH = 64
TOLERANCE = 1e-4
"""Largest relative difference from the student in float32: sums in another order differ by about 1e-6, another
network by more than 1e-2."""

_READERS: dict[str, Callable[[Path], Predict]] = {
    "safetensors": lambda path: read_safetensors(path.parent),
    "pt2": read_pt2,
    "onnx": read_onnx,
}
_GRAPH_WRITERS = {"pt2": write_pt2, "onnx": write_onnx}


def default_formats() -> tuple[ExportFormat, ...]:
    """Return the formats whose packages are installed."""
    return tuple(name for name in get_args(ExportFormat) if name != "onnx" or is_installed("onnx"))


def check_export_target(out: Path) -> None:
    """Check that a folder is a valid target of an export.

    Raises:
        ConfigError: It cannot be written, or it is not empty and is not an earlier export.
    """
    check_output_folder(out)
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


def _file_names(formats: Iterable[ExportFormat], *, int8: bool) -> Iterator[str]:
    """Yield the names that the forms will have."""
    yield PREPROCESSING_FILE
    for name in formats:
        yield f"model.{name}"
        if name == "safetensors":
            yield CONFIG_FILE
        elif int8:
            yield f"model_int8.{name}"


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
) -> ExportReport:
    """Write a student in several forms, check every one, and only then put them into `out`.

    The graphs, `pt2` and `onnx`, take any number of images.

    Args:
        student: It is moved to the CPU and put into eval mode.
        out: A new or empty folder, or an earlier export. The earlier export's files are replaced or deleted, unless
            they have changed since; others stay.
        formats: Forms to write.
        images: uint8 images [n, c, h, w] on which every form is compared with the student.
        bake_preprocessing: Whether graphs take images in [0, 1] and normalise them, or take normalised images.
        calibration: uint8 images [n, c, h, w] that determine the ranges of an int8 version of every graph; None for no
            int8 version. Needs torchao.
        min_agreement: Smallest agreement of an int8 form with the student, in [0, 1].
        labelled: Images on which the accuracy of the student and of int8 forms is measured; no check depends on it.

    Raises:
        ConfigError: `out` cannot be written or holds something else, or there is nothing to export.
        ExportError: A form cannot be made, a package is missing, or a form differs from the student. `out` is then
            unchanged.

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
    _check_free(out, _file_names(formats, int8=calibration is not None))
    if not formats or (calibration is not None and not set(formats) & set(_GRAPH_WRITERS)):
        raise ConfigError("An export needs a format, and int8 needs a graph format. Add: --format pt2")
    student = student.cpu().eval()
    with replacing_files(out, last=EXPORT_FILE, stale=unchanged_files) as folder:
        student_logits = predict_all(student, images)
        forms = []
        for form in _write_forms(student, folder, formats, bake_preprocessing, calibration):
            prepare = None if form.normalises else student.normalise
            fidelities = {}
            for setting, predict in _readers(form, folder):
                name = form.file if setting == "default" else f"{form.file} ({setting})"
                logits = predict_all(predict, images, prepare=prepare, name=name)
                fidelities[setting] = measure_fidelity(logits, student_logits)
                _check(form, name, fidelities[setting], min_agreement)
            predict = _READERS[form.format](folder / form.file)
            scored = labelled if form.precision == "int8" else None
            forms.append(_describe(form, folder, fidelities, _accuracy(predict, scored, prepare)))
        digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / PREPROCESSING_FILE, describe_preprocessing(student.card, forms, digests))
        report = ExportReport(
            made_by=MADE_BY,
            student_digest=model_digest(student),
            forms=tuple(forms),
            num_checked_images=len(images),
            max_relative_difference=TOLERANCE,
            num_calibration_images=0 if calibration is None else len(calibration),
            min_agreement=min_agreement,
            num_labelled_images=0 if labelled is None else len(labelled),
            student_accuracy=_accuracy(student, labelled, None),
            processor=processor_features(),
            versions=find_versions(forms),
            sha256={**digests, PREPROCESSING_FILE: file_sha256(folder / PREPROCESSING_FILE)},
        )
        _check_free(out, report.sha256)
        write_json(folder / EXPORT_FILE, report)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    file: str
    format: ExportFormat
    precision: Precision
    normalises: bool


def _write_forms(
    student: Classifier, folder: Path, formats: Sequence[ExportFormat], bake: bool, calibration: Tensor | None
) -> Iterator[_Form]:
    """Write one form after the other into `folder`."""
    if "safetensors" in formats:
        save_model(folder, student)
        yield _Form(file="model.safetensors", format="safetensors", precision="float32", normalises=True)
    graphs = [name for name in get_args(ExportFormat) if name in formats and name in _GRAPH_WRITERS]
    if not graphs:
        return
    image_shape = student.card.image_shape
    programs: dict[Precision, ExportedProgram] = {"float32": capture(graph_of(student, normalises=bake), image_shape)}
    if calibration is not None:
        with needing("int8"):
            from dfkd_core.export.quantisation import quantise_network

            quantised = quantise_network(programs["float32"], _calibration_batches(student, calibration, bake))
        programs["int8"] = capture(quantised, image_shape)
    for precision, program in programs.items():
        for name in graphs:
            file = f"model.{name}" if precision == "float32" else f"model_{precision}.{name}"
            _GRAPH_WRITERS[name](program, folder / file)
            yield _Form(file=file, format=name, precision=precision, normalises=bake)


def _calibration_batches(student: Classifier, images: Tensor, bake: bool) -> Iterator[Tensor]:
    for positions in torch.split(torch.arange(len(images)), _CALIBRATION_BATCH):
        batch = load_batch(images, positions).clone(memory_format=torch.contiguous_format)
        yield batch if bake else student.normalise(batch)


def _readers(form: _Form, folder: Path) -> Iterator[tuple[str, Predict]]:
    """Yield each setting of the runtime under which a form is checked, and the form loaded with it."""
    path = folder / form.file
    yield "default", _READERS[form.format](path)
    if form.format == "onnx" and form.precision == "int8":
        for setting in ONNX_SETTINGS[1:]:
            yield setting, read_onnx(path, setting)


def _check(form: _Form, name: str, fidelity: Fidelity, min_agreement: float) -> None:
    if form.precision == "int8":
        check_fidelity(fidelity, name=name, min_agreement=min_agreement)
    else:
        check_fidelity(fidelity, name=name, max_relative_difference=TOLERANCE)


def _describe(form: _Form, folder: Path, fidelities: dict[str, Fidelity], accuracy: float | None) -> ExportedForm:
    return ExportedForm(
        file=form.file,
        format=form.format,
        precision=form.precision,
        input="unit_range" if form.normalises else "normalised",
        size_bytes=(folder / form.file).stat().st_size,
        fidelity=fidelities.pop("default"),
        other_settings=fidelities,
        accuracy=accuracy,
    )


def _accuracy(
    predict: Predict, labelled: EvaluationData | LabelledImages | None, prepare: Predict | None
) -> float | None:
    if labelled is None:
        return None
    predicted = predict_all(predict, labelled.images, prepare=prepare).argmax(1)
    return (predicted == labelled.labels).double().mean().item()
