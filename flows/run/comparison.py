"""`dfkd compare`: a table over students, and over their earlier runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.run.figures import share_interval, student_figures
from dfkd_flows.run.table import heading
from dfkd_flows.settings.hints import closest
from dfkd_flows.settings.params import Params
from dfkd_flows.stages.changes import changed_sections
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.dvc_project.status import LOCK, results_digest
from dfkd_tasks.records.forms import between, kilobytes, milliseconds, seconds, share

__all__ = ["FIGURES", "FORMS", "compare"]

_PRESENT, _FAILED = "now", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    student: str
    run: str
    """When it was logged; `now` for the results in the project, `failed` if this run did not make them."""
    teacher: str
    data: str
    figures: Mapping[str, float]
    """By the names in MLflow; empty if there are no results."""
    changed: Sequence[str] = ()
    """Sections of params.yaml that have changed since the present results were made."""


def compare(
    params: Params,
    *,
    names: Sequence[str] = (),
    metric: str | None = None,
    as_json: bool = False,
    runs: int = 0,
    failed: Collection[str] = (),
) -> str:
    """Return a table of students: accuracy and agreement with 95 % intervals, size, latency of one image and seconds.

    Args:
        params: Parameters of the project.
        names: Names of the students; all if there are none.
        metric: A figure to show instead: one of these columns, or a figure's name in MLflow.
        as_json: Whether to return JSON, a list with an object for each row.
        runs: Number of earlier runs of each student, which are read from MLflow.
        failed: Names of students whose results are those of an earlier run, and are not shown.

    Raises:
        ConfigError: There is no such student, or no row has such a figure.
        DfkdError: Results are damaged.
    """
    if runs < 0:
        raise ConfigError(f"--runs must be 0 or more, got {runs}. Try: dfkd compare --runs 5")
    chosen = params.only(names) if names else params
    rows = [row for name in chosen.students for row in _rows(chosen.for_student(name), runs, name in failed)]
    if metric is not None:
        _check_metric(metric, rows)
    if as_json:
        return json.dumps([_object(row, metric) for row in rows], indent=2)
    return "\n".join(["", *_table(rows, metric), "", *_hints(rows)])


def _rows(params: Params, runs: int, is_failed: bool) -> Iterator[_Row]:
    """Yield the present results of a student, then other ones that were registered before."""
    name = params.student_name
    about = {"student": name, "teacher": params.teacher_name, "data": heading(params.data.dataset)}
    if is_failed:
        yield _Row(**about, run=_FAILED, figures={})
        return
    made = StudentFiles(name).metrics.is_file()
    changed = changed_sections(params) if made else ()
    yield _Row(**about, run=_PRESENT, figures=student_figures(params) if made else {}, changed=changed)
    if not runs:
        return
    # Imported late: MLflow takes seconds.
    from dfkd_tasks.mlflow_store.runs import published_runs

    present = results_digest(addresses(params)) if LOCK.is_file() else None
    # One more, as the present results can be among them.
    earlier = [run for run in published_runs(name, limit=runs + 1) if run.results_sha256 != present]
    for run in earlier[:runs]:
        yield _Row(**about, run=run.time.strftime("%Y-%m-%d %H:%M"), figures=run.figures)


def _agreement(figures: Mapping[str, float]) -> float | None:
    """Return the share of images with the teacher's answer: real images, or synthetic ones where there are none."""
    return figures.get("proxy.agreement", figures.get("student.agreement"))


def _seconds(figures: Mapping[str, float]) -> float | None:
    """Return the seconds of all stages that were measured, those of the teacher included."""
    found = [value for name, value in figures.items() if name.startswith("seconds.")]
    return sum(found) if found else None


FIGURES: dict[str, Callable[[Mapping[str, float]], float | None]] = {
    "accuracy": lambda figures: figures.get("student.accuracy"),
    "agreement": _agreement,
    "size": lambda figures: figures.get("student.size_bytes"),
    "latency": lambda figures: figures.get("latency.student.batch_1_ms"),
    "seconds": _seconds,
}
"""The columns; size in bytes, latency in milliseconds for one image."""
_SHARES = ("accuracy", "agreement")
FORMS: dict[str, Callable[[float], str]] = {
    "size": kilobytes,
    "latency": milliseconds,
    "seconds": seconds,
}
"""How the columns that are no shares are written."""


def _value(row: _Row, column: str) -> float | None:
    return FIGURES[column](row.figures) if column in FIGURES else row.figures.get(column)


def _interval(row: _Row, column: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of images; None of another figure, and if the images were not counted."""
    if column not in _SHARES:
        return None
    return share_interval(_value(row, column), row.figures.get("num_images", 0))


def _text(row: _Row, column: str) -> str:
    value = _value(row, column)
    if value is None:
        return "-"
    if column in _SHARES:
        interval = _interval(row, column)
        within = f" ({between(interval)})" if interval else ""
        proxy = ", proxy" if column == "agreement" and "proxy.agreement" in row.figures else ""
        return f"{share(value)}{within}{proxy}"
    return FORMS[column](value) if column in FORMS else f"{value:.6g}"


def _table(rows: Sequence[_Row], metric: str | None) -> Iterator[str]:
    columns = [metric] if metric is not None else list(FIGURES)
    about = {"student": [row.student for row in rows]}
    for name in ("teacher", "data", "run"):
        found = [getattr(row, name) for row in rows]
        if len(set(found)) > 1:
            about[name] = found
    cells = about | {column: [_text(row, column) for row in rows] for column in columns}
    widths = {name: max(map(len, (name, *texts))) for name, texts in cells.items()}
    for texts in (list(cells), *zip(*cells.values())):
        yield "  ".join(text.ljust(width) for text, width in zip(texts, widths.values())).rstrip()


def _hints(rows: Sequence[_Row]) -> Iterator[str]:
    missing = [row.student for row in rows if not row.figures and row.run != _FAILED]
    if missing:
        yield f"Not made yet: {', '.join(missing)}. Make with: dfkd run {' '.join(missing)}"
    older = {row.student: row.changed for row in rows if row.changed}
    if older:
        found = "; ".join(f"{name} ({', '.join(sections)})" for name, sections in older.items())
        again = f"dfkd run {' '.join(older)}"
        yield f"params.yaml has changed since these were made: {found}. Make them again with: {again}"
    yield "Intervals are of 95 % (Wilson). One student in detail: dfkd show NAME"


def _object(row: _Row, metric: str | None) -> dict[str, Any]:
    """Return a row for JSON: shares from 0 to 1, bytes, milliseconds, seconds; null for what is not known."""
    about: dict[str, Any] = {"student": row.student, "teacher": row.teacher, "data": row.data, "run": row.run}
    if row.run == _PRESENT:
        about["changed_sections"] = list(row.changed)
    columns = [metric] if metric is not None else list(FIGURES)
    found: dict[str, Any] = {column: _finite(_value(row, column)) for column in columns}
    intervals = {f"{column}_interval": _interval(row, column) for column in columns if column in _SHARES}
    return about | found | intervals


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _check_metric(metric: str, rows: Sequence[_Row]) -> None:
    known = dict.fromkeys([*FIGURES, *(name for row in rows for name in row.figures)])
    if metric in known:
        return
    if not any(row.figures for row in rows):
        raise DfkdError("There are no results yet. Make them with: dfkd run")
    hint = closest(metric, known, cutoff=0.5, otherwise=f"figures: {', '.join(known)}")
    raise ConfigError(f"No figure {metric!r}; {hint}")
