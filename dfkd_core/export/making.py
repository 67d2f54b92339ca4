"""Makes one form of a student after the other: written, read back, and compared with the student.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dfkd_core.common.pixels import load_batch
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import DfkdError, ExportError
from dfkd_core.evaluation.labelled_images import EvaluationData
from dfkd_core.export.fidelity import TOLERANCE, Fidelity, Predict, check_fidelity, measure_fidelity, predict_all
from dfkd_core.export.forms import (
    ONNX_SETTINGS,
    capture,
    graph_of,
    needing,
    read_onnx,
    read_pt2,
    read_safetensors,
    write_onnx,
    write_pt2,
    write_safetensors,
)
from dfkd_core.export.report import ExportedForm, ExportFormat, FailedForm, Precision
from dfkd_core.export.timm_files import add_timm_fields
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import CONFIG_FILE

__all__ = ["GRAPHS", "Checks", "Graphs", "Plan", "accuracy_of", "make_forms", "plan_forms"]

GraphFormat = Literal["pt2", "onnx"]
GRAPHS: tuple[GraphFormat, ...] = get_args(GraphFormat)
"""The formats that hold a graph of operators, which can become int8."""

_CALIBRATION_BATCH = 64
_READERS: dict[str, Callable[[Path], Predict]] = {
    "safetensors": lambda path: read_safetensors(path.parent),
    "pt2": read_pt2,
    "onnx": read_onnx,
}
_GRAPH_WRITERS = {"pt2": write_pt2, "onnx": write_onnx}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A form to be made."""

    file: str
    """Name of its file."""
    format: ExportFormat
    """Program that reads it."""
    precision: Precision
    """Kind of its weights and activations."""
    normalises: bool
    """Whether it takes images in [0, 1] and normalises them, or takes normalised ones."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files."""
        return (self.file, CONFIG_FILE) if self.format == "safetensors" else (self.file,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What every form is compared with."""

    images: Tensor
    """uint8 [n, c, h, w]."""
    student_logits: Tensor
    """The student's logits [n, k] for them."""
    min_agreement: float
    """Smallest agreement of an int8 form with the student, in [0, 1]."""
    labelled: EvaluationData | LabelledImages | None
    """Images on which the accuracy of int8 forms is measured."""


class Graphs:
    """The captured networks of a student, one for each precision, made when the first form needs it."""

    def __init__(self, student: Classifier, *, bake: bool, calibration: Tensor | None) -> None:
        """Prepare nothing yet.

        Args:
            student: In eval mode on the CPU.
            bake: Whether the graphs normalise their input.
            calibration: uint8 images [n, c, h, w] for the ranges of int8.
        """
        self._student = student
        self._bake = bake
        self._calibration = calibration
        self._made: dict[Precision, ExportedProgram | Exception] = {}

    def program(self, precision: Precision) -> ExportedProgram:
        """Return the captured network.

        Raises:
            ExportError: It cannot be captured or quantised. A second call raises the same error.
        """
        if precision not in self._made:
            try:
                self._made[precision] = self._capture() if precision == "float32" else self._quantise()
            except Exception as error:
                self._made[precision] = error
        made = self._made[precision]
        if isinstance(made, Exception):
            raise made
        return made

    def _capture(self) -> ExportedProgram:
        return capture(graph_of(self._student, normalises=self._bake), self._student.card.image_shape)

    def _quantise(self) -> ExportedProgram:
        program = self.program("float32")
        with needing("int8"):
            from dfkd_core.export.quantisation import quantise_network

            quantised = quantise_network(program, self._batches())
        return capture(quantised, self._student.card.image_shape)

    def _batches(self) -> Iterator[Tensor]:
        assert self._calibration is not None
        for positions in torch.split(torch.arange(len(self._calibration)), _CALIBRATION_BATCH):
            batch = load_batch(self._calibration, positions).clone(memory_format=torch.contiguous_format)
            yield batch if self._bake else self._student.normalise(batch)


def plan_forms(formats: Sequence[ExportFormat], *, bake: bool, int8: bool) -> list[Plan]:
    """Return the forms to be made, in a fixed order: first safetensors, then the graphs in float32, then in int8."""
    found: list[Plan] = []
    if "safetensors" in formats:
        found.append(Plan(file="model.safetensors", format="safetensors", precision="float32", normalises=True))
    precisions: tuple[Precision, ...] = ("float32", "int8") if int8 else ("float32",)
    for precision in precisions:
        for name in GRAPHS:
            if name in formats:
                file = f"model.{name}" if precision == "float32" else f"model_{precision}.{name}"
                found.append(Plan(file=file, format=name, precision=precision, normalises=bake))
    return found


def make_forms(
    plans: Sequence[Plan],
    student: Classifier,
    graphs: Graphs,
    folder: Path,
    checks: Checks,
    on_file: Callable[[str], None],
) -> tuple[list[ExportedForm], list[FailedForm]]:
    """Make every planned form in `folder`; one that fails is deleted, and the others stay.

    Calls `on_file` with the name of each form's file before it is made.

    Raises:
        OSError: The folder cannot be written.
    """
    forms: list[ExportedForm] = []
    failures: list[FailedForm] = []
    for plan in plans:
        before = {*folder.iterdir()}
        on_file(plan.file)
        try:
            _check_twin(plan, failures)
            forms.append(_make(plan, student, graphs, folder, checks))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # writers and runtimes have error classes of their own
            failures.append(FailedForm(file=plan.file, reason=_reason(plan, error)))
            for path in {*folder.iterdir()} - before:
                path.unlink()
    return forms, failures


def accuracy_of(
    predict: Predict, labelled: EvaluationData | LabelledImages | None, prepare: Predict | None = None
) -> float | None:
    """Return the share of labelled images with the right class, None without such images."""
    if labelled is None:
        return None
    predicted = predict_all(predict, labelled.images, prepare=prepare).argmax(1)
    return (predicted == labelled.labels).double().mean().item()


def _make(plan: Plan, student: Classifier, graphs: Graphs, folder: Path, checks: Checks) -> ExportedForm:
    loads_in_timm = False
    if plan.format == "safetensors":
        write_safetensors(student, folder)
        loads_in_timm = add_timm_fields(folder, student, checks.images, checks.student_logits)
    else:
        _GRAPH_WRITERS[plan.format](graphs.program(plan.precision), folder / plan.file)
    prepare = None if plan.normalises else student.normalise
    fidelities = {}
    for setting, predict in _readers(plan, folder):
        name = plan.file if setting == "default" else f"{plan.file} ({setting})"
        logits = predict_all(predict, checks.images, prepare=prepare, name=name)
        fidelities[setting] = measure_fidelity(logits, checks.student_logits)
        _check(plan, name, fidelities[setting], checks.min_agreement)
    labelled = checks.labelled if plan.precision == "int8" else None
    return ExportedForm(
        file=plan.file,
        format=plan.format,
        precision=plan.precision,
        input="unit_range" if plan.normalises else "normalised",
        size_bytes=(folder / plan.file).stat().st_size,
        fidelity=fidelities.pop("default"),
        other_settings=fidelities,
        loads_in_timm=loads_in_timm,
        accuracy=accuracy_of(_READERS[plan.format](folder / plan.file), labelled, prepare),
    )


def _check_twin(plan: Plan, failures: Sequence[FailedForm]) -> None:
    """Refuse an int8 form if its float32 twin failed: the cause would be mistaken for rounding."""
    twin = f"model.{plan.format}"
    if plan.precision == "int8" and any(failure.file == twin for failure in failures):
        raise ExportError(f"{plan.file} is not made, since {twin} has failed")


def _readers(plan: Plan, folder: Path) -> Iterator[tuple[str, Predict]]:
    """Yield each setting of the runtime under which a form is checked, and the form loaded with it."""
    path = folder / plan.file
    yield "default", _READERS[plan.format](path)
    if plan.format == "onnx" and plan.precision == "int8":
        for setting in ONNX_SETTINGS[1:]:
            yield setting, read_onnx(path, setting)


def _check(plan: Plan, name: str, fidelity: Fidelity, min_agreement: float) -> None:
    if plan.precision == "int8":
        check_fidelity(fidelity, name=name, min_agreement=min_agreement)
    else:
        check_fidelity(fidelity, name=name, max_relative_difference=TOLERANCE)


def _reason(plan: Plan, error: Exception) -> str:
    """Return the error as a sentence that names the form."""
    text = str(error) if isinstance(error, DfkdError) else f"{type(error).__name__}: {error}".partition("\n")[0]
    return text if plan.file in text else f"{plan.file}: {text}"
