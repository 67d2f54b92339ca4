"""The table of a run: of its only student, or over several."""

from __future__ import annotations

from collections.abc import Collection

from dfkd_flows.run.comparison import compare
from dfkd_flows.run.table import render
from dfkd_flows.settings.params import Params

__all__ = ["results_text"]


def results_text(params: Params, failed: Collection[str] = ()) -> str:
    """Return the table of a run.

    Args:
        params: Parameters of its students.
        failed: Names of those that were not made, each of which has a row.
    """
    if len(params.students) == 1:
        return render(params.for_student(*params.students))
    return compare(params, failed=failed)
