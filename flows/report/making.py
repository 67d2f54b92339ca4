"""The pages of a project: one per student, and one of the whole project, `reports/report.html`.

That of the project is the page of its only student, or its students side by side with links to their pages.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dfkd_core.common.digests import write_atomically
from dfkd_core.errors import DfkdError
from dfkd_flows.report.collecting import collect
from dfkd_flows.report.comparing import compared
from dfkd_flows.run.outcome import Made
from dfkd_flows.session.display import say
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.shown.log import log
from dfkd_tasks.caching.workspace import PROJECT_REPORT, StudentFiles
from dfkd_tasks.records.foreign import reason
from dfkd_tasks.report.page import comparison_page, student_page

__all__ = ["make_page", "make_project_page", "report_run", "report_trial", "write_page"]


def make_page(params: Params) -> Path:
    """Write the page of a student and return its path.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: There are no results yet, or a file of them is damaged.
    """
    return write_page(StudentFiles(params.student_name).report, student_page(collect(params)))


def make_project_page(params: Params) -> Path | None:
    """Write the page of the project and return its path; None if no student has results.

    Args:
        params: Parameters of the project, whose students have their pages.
    """
    made = [name for name in params.students if StudentFiles(name).metrics.is_file()]
    if not made:
        return None
    if len(params.students) == 1:
        return write_page(PROJECT_REPORT, StudentFiles(*made).report.read_text(encoding="utf-8"))
    return write_page(PROJECT_REPORT, comparison_page(compared(params, made, beside=PROJECT_REPORT)))


def write_page(path: Path, text: str) -> Path:
    """Write a page, whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def report_run(made: Made) -> None:
    """Make the pages of a run's students and of the project, and log each with its MLflow run.

    What fails is logged; no result depends on it. Call it within a flow.
    """
    for name in made.params.students:
        if name not in made.failed:
            published = made.published.get(name)
            _report_student(made.params.for_student(name), published.run_id if published else "")
    try:
        make_project_page(load_params())
    except Exception as error:
        _note_fault(error)


def report_trial(params: Params, run_id: str) -> None:
    """Make the page of a trial's student and log it with its MLflow run; what fails is logged. Call it within a flow.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        run_id: Its run.
    """
    _report_student(params, run_id)


def _report_student(params: Params, run_id: str) -> None:
    # Any fault, also one of ours: the results are made and registered, and the page can be made again.
    try:
        page = make_page(params)
        if run_id:
            from dfkd_tasks.mlflow_store.pages import log_page

            log_page(run_id, page)
    except Exception as error:
        _note_fault(error)


def _note_fault(error: Exception) -> None:
    text = str(error) if isinstance(error, DfkdError) else f"{type(error).__name__}: {reason(error)}"
    text = f"The report is not complete: {text}. Make it again with: dfkd report"
    say(text)
    log(text, level=logging.WARNING)
