"""`dfkd export`: a stored student in the formats of other runtimes, with the checks of each file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from torch import Tensor

from dfkd_core.common.output_folders import check_output_folder
from dfkd_core.common.rows import Rows
from dfkd_core.data.datasets import dataset_spec, is_built_in
from dfkd_core.errors import ConfigError, DataError, ExportError, TransferSetError
from dfkd_core.evaluation.labelled_images import EvaluationData, load_evaluation_data
from dfkd_core.export.report import EXPORT_FILE, ExportedForm, ExportFormat, ExportReport
from dfkd_core.export.run import check_export_target, choose_images, default_formats, export_model, probe_images
from dfkd_core.installing import install_command
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.storage import read_card
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_flows.commands.cards import MODEL_CARD, SET_CARD, check_results, model_card, set_card
from dfkd_flows.session.anywhere import in_project
from dfkd_flows.session.display import say
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.settings.trust import allow
from dfkd_flows.stages.changes import older_note
from dfkd_tasks.caching.stored_models import load_allowed_model
from dfkd_tasks.caching.trust import allow_factories
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles

__all__ = ["export_student"]


def export_student(
    student: str | None,
    here: Path,
    out: Path,
    *,
    formats: Sequence[str],
    bake_preprocessing: bool,
    int8: bool,
    transfer_set: Path | None,
    min_agreement: float,
    card: bool = False,
    trusted: Collection[str] = (),
) -> None:
    """Export a stored student; print each file when it is begun, and a line for each form at the end.

    Args:
        student: Name of a student of the project, or a folder with model.safetensors and config.json; None is the
            project's only student.
        here: Folder from which the path of a folder starts.
        out: Folder of the export.
        formats: Names of the formats; none means all whose packages are installed.
        bake_preprocessing: Whether graphs normalise their input themselves.
        int8: Whether to make int8 versions of the graphs too.
        transfer_set: Images for check and calibration; None takes the project's if the project's student becomes
            int8, and otherwise generic shapes for the check.
        min_agreement: Smallest agreement of an int8 form with the student.
        card: Whether to write cards of the student and of its transfer set too.
        trusted: Factories that the student may call.

    Raises:
        ConfigError: An option is not allowed.
        ExportError: A form could not be made; those that could are in `out`.
        DfkdError: As `load_model`, `TransferSet` and `export_model`.
    """
    params = load_params() if in_project() else Params()
    name = (
        params.the_student(None, "--student NAME")
        if student is None
        else student
        if student in params.students
        else None
    )
    folder = StudentFiles(name).network if name else here / str(student)
    chosen = _parse_formats(formats)
    # Before the student is loaded, as a wrong option is the cheaper fault to find.
    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"--min-agreement must be from 0 to 1, got {min_agreement}. Try: --min-agreement 0.9")
    check_output_folder(out)
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out {out} is the student's own folder. Give another one")
    check_export_target(out)
    if card:
        _check_card(params, name)
    if name:
        allow(params, trusted)
    else:
        allow_factories(folder, trusted)
    loaded = load_allowed_model(folder)
    if name and (older := older_note(params.for_student(name))):
        say(f"Note: {older}")
    if int8 and transfer_set is None:
        if name is None:
            raise ConfigError("--int8 needs images to calibrate on. Give the student's: --transfer-set DIR")
        transfer_set = TeacherFiles(params.teacher_of(name)).transfer_set
    calibration: Tensor | None = None
    if transfer_set is None:
        images = probe_images(loaded.card.image_shape)
    else:
        images, calibration = choose_images(_read_images(transfer_set, loaded.card))
    labelled, note = _find_labelled(loaded.card, params.for_student(name) if name else params) if int8 else (None, "")
    report = export_model(
        loaded,
        out,
        formats=chosen,
        images=images,
        bake_preprocessing=bake_preprocessing,
        calibration=calibration if int8 else None,
        min_agreement=min_agreement,
        labelled=labelled,
        on_file=lambda file: say(f"Making and checking {file} ..."),
        describe=partial(_cards, params.for_student(name), loaded.card) if card and name else lambda forms: {},
    )
    _print_report(report, out, note)
    if card:
        say(f"Cards: {out / MODEL_CARD}, {out / SET_CARD}")
    if not formats and "onnx" not in chosen:
        say(f"Left out: onnx. Install its packages with: {install_command('onnx')}")
    if report.failures:
        reasons = " ".join(f"{failure.reason.rstrip('.')}." for failure in report.failures)
        raise ExportError(f"{reasons} The forms in the table are in {out}")


def _check_card(params: Params, name: str | None) -> None:
    if name is None:
        raise ConfigError("--card needs the figures of a run. Name a student of the project: --student NAME")
    check_results(params.for_student(name))
    read_manifest(TeacherFiles(params.teacher_of(name)).transfer_set)


def _cards(params: Params, card: ModelCard, forms: Sequence[ExportedForm]) -> dict[str, str]:
    """Return the cards of a student and its transfer set by the names of their files."""
    shared = TeacherFiles(params.teacher_name)
    manifest = read_manifest(shared.transfer_set)
    of_set = set_card(manifest, read_card(shared.network))
    return {MODEL_CARD: model_card(params, card, forms), SET_CARD: of_set}


def _parse_formats(names: Sequence[str]) -> tuple[ExportFormat, ...]:
    known: tuple[ExportFormat, ...] = get_args(ExportFormat)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"No format {unknown[0]!r}. Formats: {', '.join(known)}")
    return tuple(name for name in known if name in names) or default_formats()


def _read_images(folder: Path, card: ModelCard) -> Rows:
    images = TransferSet(folder).images
    if tuple(images.shape[1:]) != card.image_shape:
        raise TransferSetError(
            f"The images of {folder} have shape {tuple(images.shape[1:])} and the student takes {card.image_shape}. "
            "Give the transfer set that it was trained on: --transfer-set DIR"
        )
    return images


def _find_labelled(card: ModelCard, params: Params) -> tuple[EvaluationData | None, str]:
    """Return the project's test images if they fit the student, and otherwise the reason that they do not."""
    if not in_project():
        return None, "accuracy not measured: the test images of a project are used, and this folder is in none"
    data = params.data
    if is_built_in(data.dataset) and not {*card.class_names} <= {*dataset_spec(data.dataset).class_names}:
        return None, f"accuracy not measured: the student's classes are not those of {data.dataset}"
    try:
        labelled = load_evaluation_data(data, card)
    except (ConfigError, DataError) as error:
        return None, f"accuracy not measured: {error}"
    return labelled, "" if labelled else "accuracy not measured: data.dataset is none"


def _print_report(report: ExportReport, out: Path, note: str) -> None:
    say(f"{'':<20} {'size':>10}  {'takes':<17} {'difference':>10}  {'agreement':>9}  {'accuracy':>8}")
    for form in report.forms:
        say(_line(form))
    if any(form.loads_in_timm for form in report.forms):
        say(f'timm loads it too: timm.create_model("local-dir:{out}", pretrained=True), for normalised images')
    if report.student_accuracy is not None:
        say(
            f"Accuracy of the student itself on the same {report.num_labelled_images} images: "
            f"{report.student_accuracy:.2%}"
        )
    if note:
        say(f"Note: {note}")
    say(
        f"Made {out}, checked on {report.num_checked_images} images in batches of different sizes. "
        f"Figures and digests: {out / EXPORT_FILE}"
    )


def _line(form: ExportedForm) -> str:
    takes = "images in [0, 1]" if form.input == "unit_range" else "normalised images"
    accuracy = "" if form.accuracy is None else f"{form.accuracy:.2%}"
    size, fidelity = f"{form.size_bytes / 1000:,.0f} kB", form.fidelity
    figures = f"{fidelity.max_difference:>10.2g}  {fidelity.agreement:>9.2%}  {accuracy:>8}"
    return f"{form.file:<20} {size:>10}  {takes:<17} {figures}".rstrip()
