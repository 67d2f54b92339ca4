"""`dfkd report`: make the pages of the project's students again, or one of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfkd_core.errors import DfkdError
from dfkd_flows.report.comparing import compared
from dfkd_flows.report.making import make_page, make_project_page, write_page
from dfkd_flows.session.display import say
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.workspace import PROJECT_REPORT, REPORTS, StudentFiles
from dfkd_tasks.report.page import comparison_page

__all__ = ["report_runs"]

_COMPARISON = REPORTS / "comparison.html"
_RUNS = REPORTS / "runs"


def report_runs(params: Params, runs: Sequence[str]) -> None:
    """Make pages and print their paths.

    Args:
        params: Parameters of the project.
        runs: Names of students, or ids of runs in MLflow; all students if there are none. Several share a page.

    Raises:
        ConfigError: There is no such student and no such run.
        DfkdError: There are no results yet, or a run has no page.
    """
    for path in _pages(params, list(dict.fromkeys(runs))):
        say(str(path))


def _pages(params: Params, runs: Sequence[str]) -> list[Path]:
    if len(runs) > 1:
        return [write_page(_COMPARISON, comparison_page(compared(params, runs, beside=_COMPARISON)))]
    if runs and runs[0] not in params.students:
        return [_of_mlflow(params, runs[0])]
    names = runs or [name for name in params.students if StudentFiles(name).metrics.is_file()]
    if not names:
        raise DfkdError("There are no results yet. Make them with: dfkd run")
    pages = [make_page(params.for_student(name)) for name in names]
    whole = make_project_page(params)
    return [*pages, *([whole] if whole else [])]


def _of_mlflow(params: Params, run: str) -> Path:
    """Return the page that was logged with a run in MLflow, after it was copied into the project."""
    from dfkd_tasks.mlflow_store.pages import fetch_page

    # Checks the name before it becomes a part of a path.
    compared(params, [run], beside=PROJECT_REPORT)
    return fetch_page(run, _RUNS / run)
