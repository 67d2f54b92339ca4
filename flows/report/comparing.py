"""Several runs side by side: students of the project, and runs in MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.run.comparison import FIGURES, FORMS
from dfkd_flows.run.figures import share_interval, student_figures
from dfkd_flows.settings.hints import closest
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.mlflow_store.addresses import page_command
from dfkd_tasks.records.forms import between, count, share
from dfkd_tasks.report.facts import UNKNOWN, Comparison, Number, RunRow

__all__ = ["compared"]

_OTHERS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "agreement": ("student.agreement", share),
    "calibration error": ("student.ece", share),
    "latency, 1 image": ("latency.student.batch_1_ms", FORMS["latency"]),
    "parameters": ("student.num_parameters", count),
}


def compared(params: Params, runs: Sequence[str], *, beside: Path) -> Comparison:
    """Return the facts of several runs.

    Args:
        params: Parameters of the project.
        runs: Names of students, or ids of runs in MLflow.
        beside: The page that shows them, from which links lead to those of the students.

    Raises:
        ConfigError: There is no such student and no such run.
        DfkdError: A student has no results yet.
    """
    rows = tuple(_row(params, run, beside.parent) for run in dict.fromkeys(runs))
    return Comparison(title=f"{len(rows)} runs side by side", columns=tuple(_OTHERS), rows=rows)


def _row(params: Params, run: str, folder: Path) -> RunRow:
    if run in params.students:
        page = StudentFiles(run).report
        link = Path(os.path.relpath(page, folder)).as_posix() if page.is_file() else ""
        return _of_figures(run, student_figures(params.for_student(run)), link)
    # Imported late: MLflow takes seconds.
    from dfkd_tasks.mlflow_store.runs import logged_run

    found = logged_run(run)
    if found is None:
        hint = closest(run, params.students)
        raise ConfigError(f"No student and no run in MLflow is named {run!r}; {hint}. Ids of runs: {page_command()}")
    return _of_figures(found.name, found.figures, "")


def _of_figures(name: str, figures: Mapping[str, float], link: str) -> RunRow:
    if not figures:
        raise DfkdError(f"The run {name} has no figures. Choose another one")
    is_proxy = "proxy.agreement" in figures
    accuracy = FIGURES["agreement" if is_proxy else "accuracy"](figures)
    interval = share_interval(accuracy, figures.get("num_images", 0))
    return RunRow(
        name=name,
        link=link,
        is_proxy=is_proxy,
        accuracy=_number(accuracy, share, between(interval)),
        interval=interval,
        seconds=_number(FIGURES["seconds"](figures), FORMS["seconds"]),
        size=_number(FIGURES["size"](figures), FORMS["size"]),
        others=tuple(_number(figures.get(figure), form) for figure, form in _OTHERS.values()),
    )


def _number(value: float | None, form: Callable[[float], str], within: str = "") -> Number:
    return UNKNOWN if value is None else Number(text=form(value), value=value, within=within)
