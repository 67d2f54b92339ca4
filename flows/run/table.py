"""The table of the last run, and commands to explore its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_core.common.digests import write_json
from dfkd_core.errors import DfkdError
from dfkd_core.models.storage import read_card
from dfkd_core.priors.table import shows_photographs
from dfkd_flows.session.environment import activation
from dfkd_flows.session.services import flows_command
from dfkd_flows.settings.choosing import student_option, teacher_argument
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.names import data_label
from dfkd_flows.stages.changes import older_note
from dfkd_flows.stages.names import addresses, label
from dfkd_tasks.caching.stored import read_note, read_result
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles, reference
from dfkd_tasks.dvc_project.status import LOCK, results_digest
from dfkd_tasks.mlflow_store.addresses import page_command, publication_place
from dfkd_tasks.mlflow_store.readiness import has_version
from dfkd_tasks.records.forms import count, kilobytes, milliseconds, nats, share
from dfkd_tasks.records.history import read_start
from dfkd_tasks.records.timing import described_seconds, stage_seconds

__all__ = [
    "figures_text",
    "heading",
    "is_published",
    "note_run",
    "pointers_text",
    "published_note",
    "read_latency",
    "read_metrics",
    "run_time",
    "table_rows",
]

_SIZES: tuple[str, ...] = ("num_parameters", "size_bytes")
_SCORES: tuple[str, ...] = ("accuracy", "ece")
_SHARES: tuple[str, ...] = (*_SCORES, "agreement")
_HEADING_WIDTH = 21
_COLUMN_WIDTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    """What the table reports of a publication."""

    results_sha256: str
    model: str
    version: str
    promoted: bool
    reason: str
    store: str = ""
    """The MLflow that has it; empty for the project's own."""
    page: str = ""
    """Address of the run's page, if a server shows it."""
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Times of the last run."""

    seconds: float
    orchestration_seconds: float
    results_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Latency:
    """Milliseconds per batch."""

    student_sha256: str
    teacher: dict[str, float]
    student: dict[str, float]


def read_metrics(student: StudentFiles) -> dict[str, Any]:
    """Return the figures of a student.

    Raises:
        DfkdError: It does not exist yet, or is damaged.
    """
    found = read_result(student.metrics, dict[str, Any])
    lacking = list(_lacking(found))
    if lacking:
        raise DfkdError(f"{student.metrics} is damaged: it has no {', '.join(lacking)}. Make it again with: dfkd run")
    return found


def _lacking(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures that the table needs and that the file does not have."""
    joint = ("agreement", "kl")
    needed = {name: _SIZES if "proxy" in metrics else _SIZES + _SCORES for name in ("teacher", "student")}
    if "proxy" in metrics:
        needed["proxy"] = (*joint, "num_classes", "largest_class")
    else:
        needed["student"] += joint
    for section, names in needed.items():
        found = metrics.get(section)
        figures = found if isinstance(found, Mapping) else {}
        yield from (f"number {section}.{name}" for name in names if not _is_number(figures.get(name)))
        yield from (f"share {section}.{name} from 0 to 1" for name in _SHARES if _is_no_share(figures.get(name)))
    notes = metrics.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        yield "list of texts notes"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_no_share(value: object) -> bool:
    """Return whether a value is a number outside of [0, 1]; NaN is shown as it is."""
    return isinstance(value, int | float) and (value < 0 or value > 1)


def read_latency(student: StudentFiles) -> dict[str, dict[str, float]]:
    """Return milliseconds per model and batch size if they were measured with the current weights of a student."""
    found = read_note(student.latency, _Latency)
    if found is None or not student.network.is_dir() or found.student_sha256 != reference(student.network).sha256:
        return {}
    return {"teacher": found.teacher, "student": found.student}


def published_note(params: Params) -> Path:
    """Return the file that notes the last publication of the student."""
    return StudentFiles(params.student_name).notes / "published.json"


def is_published(params: Params) -> bool:
    """Return whether the student's results in dvc.lock are published in the MLflow that is used now."""
    found = read_note(published_note(params), _Published)
    if found is None or not LOCK.is_file():
        return False
    is_here = (found.results_sha256, found.store) == (results_digest(addresses(params)), publication_place())
    return is_here and has_version(found.model, found.version)


def note_run(params: Params, start: float, end: float) -> None:
    """Record, for each student, the seconds of a whole run, and those of them that no stage used.

    Args:
        params: Parameters of the students that were run.
        start: When the run began, in seconds since the epoch.
        end: When it ended.
    """
    measured = [found for address in addresses(params) if (found := stage_seconds(address)) and found[1] > start]
    seconds = end - start
    orchestration = seconds - sum(found[0] for found in measured)
    for name in params.students:
        own = params.for_student(name)
        if results := results_digest(addresses(own)):
            run = _Run(seconds=seconds, orchestration_seconds=orchestration, results_sha256=results)
            write_json(_run_note(own), run)


def _run_note(params: Params) -> Path:
    return StudentFiles(params.student_name).notes / "run.json"


def figures_text(params: Params) -> str:
    """Return the table of a student's last run, with notes and the seconds of its stages.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: There are no results yet.
    """
    found = read_metrics(StudentFiles(params.student_name))
    rows = list(_rows(found, params))
    widths = [max(_COLUMN_WIDTH, *(len(row[column]) + 2 for row in rows)) for column in (1, 2)]
    lines = [f"{name:<22}{teacher:>{widths[0]}}{student:>{widths[1]}}" for name, teacher, student in rows]
    notes = [f"Note: {note}" for note in filter(None, (older_note(params), *found.get("notes", [])))]
    seconds = [f"{label(address, params):<22}{described_seconds(address):>16}" for address in addresses(params)]
    return "\n".join(["", *lines, "", *notes, *([""] if notes else []), *seconds])


def run_time(params: Params) -> str:
    """Return the row with the seconds of the last run that were no work of a stage; empty if it has other results.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    run = read_note(_run_note(params), _Run)
    # An experiment of DVC leaves other results than the last run.
    if run is None or not LOCK.is_file() or run.results_sha256 != results_digest(addresses(params)):
        return ""
    seconds = f"{run.orchestration_seconds:.1f} s"
    return f"{'orchestration':<22}{seconds:>16}   of {run.seconds:.1f} s in the last run"


def pointers_text(params: Params) -> str:
    """Return commands that explore a student's results.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    return "\n".join(_pointers(params))


def table_rows(params: Params) -> list[tuple[str, str, str]]:
    """Return the rows of a student's table: name, teacher and student; the first one has the headings.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: There are no results yet.
    """
    return list(_rows(read_metrics(StudentFiles(params.student_name)), params))


def _rows(metrics: Mapping[str, Any], params: Params) -> Iterator[tuple[str, str, str]]:
    shared, own = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    teacher, student, latency = metrics["teacher"], metrics["student"], read_latency(own)
    card = read_card(shared.network)
    joint = metrics.get("proxy", student)
    proxy = " (proxy)" if "proxy" in metrics else ""
    yield heading(params.data.dataset), "teacher", "student"
    yield "network", card.network, read_card(own.network).network
    yield "first weights", "", "random" if read_start(own.network) == "random" else "pruned teacher"
    yield "transfer set", "", params.synthesis.method
    steps = params.synthesis.method_config.steps
    if steps:
        toned_share = steps.toned_share_for(card)
        yield "image prior", "", f"{steps.prior}, {toned_share:.0%} toned" if toned_share else steps.prior
        yield "photographs in it", "", "2 public ones" if shows_photographs(steps.prior) else "none"
    if "proxy" in metrics:
        yield "evaluated on", "", "synthetic images"
    if "labels_ordered_by_name" in metrics:
        yield "order of the labels", "", "by class names"
    if "accuracy" in student:
        yield "accuracy", share(teacher["accuracy"]), share(student["accuracy"])
        yield "calibration error", share(teacher["ece"]), share(student["ece"])
    yield f"agreement{proxy}", "", share(joint["agreement"])
    yield f"KL to teacher{proxy}", "", nats(joint["kl"])
    if "proxy" in metrics:
        yield "predicted classes", f"{joint['num_classes']} of {card.num_classes}", ""
        yield "most frequent class", share(joint["largest_class"]), ""
    yield "parameters", count(teacher["num_parameters"]), count(student["num_parameters"])
    yield "size", kilobytes(teacher["size_bytes"]), kilobytes(student["size_bytes"])
    for size in (1, 64):
        name = f"batch_{size}_ms"
        label = "1 image" if size == 1 else f"{size} images"
        if all(name in latency.get(model, {}) for model in ("teacher", "student")):
            yield f"latency, {label}", milliseconds(latency["teacher"][name]), milliseconds(latency["student"][name])


def heading(dataset: str) -> str:
    """Return the short name of the evaluation data, cut to the width of the table."""
    name = data_label(dataset)
    return name if len(name) <= _HEADING_WIDTH else f"{name[: _HEADING_WIDTH - 3]}..."


def _pointers(params: Params) -> Iterator[str]:
    shared, own = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    yield f"Explore the results (after `{first}`):" if (first := activation()) else "Explore the results:"
    published = read_note(published_note(params), _Published)
    if published is None or not is_published(params):
        yield "  model      not registered, only its files are here; register it with: dfkd publish"
    else:
        address = "@champion" if published.promoted else f"/{published.version}"
        yield f'  model      mlflow.pyfunc.load_model("models:/{published.model}{address}")'
        yield f"             version {published.version}: {published.reason}"
        # The reason holds the rules that decided; these are the others.
        yield from (
            f"             {rule}" for rule in published.rules if rule.removeprefix("broken: ") not in published.reason
        )
        yield f"  versions   dfkd history{student_option(params)}"
    # The pages of the project's own store have another address at each `dfkd up`.
    page = published.page if published and published.store and is_published(params) else ""
    yield f"  runs       {page or page_command()}"
    yield "  figures    dvc metrics show; dvc plots show"
    if own.report.is_file():
        yield f"  report     {own.report}"
    yield f"  images     {shared.reports}/samples.png, {own.reports}/confusion.png"
    yield f"  flows      {flows_command()}"
    yield f"  transfer   dfkd verify{teacher_argument(params)}"
