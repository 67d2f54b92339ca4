"""The text on the results of a run: of its only student, or over several."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dfkd_flows.run.comparison import compare
from dfkd_flows.run.table import figures_text, pointers_text, run_time
from dfkd_flows.settings.params import Params

__all__ = ["Results", "results_of", "results_text"]


@dataclass(frozen=True, slots=True)
class Results:
    """The text on the results of a run in two parts; the time of the run, known at its end, comes between them."""

    figures: str
    pointers: str
    """Empty for several students."""

    def text(self, time: str = "") -> str:
        """Return the whole text, with the row of the time unless it is empty."""
        rows = [self.figures, *filter(None, [time])]
        return "\n".join([*rows, "", self.pointers, ""] if self.pointers else rows)


def results_of(params: Params, failed: Collection[str] = ()) -> Results:
    """Return the text on the results of a run.

    Args:
        params: Parameters of its students.
        failed: Names of those that were not made, each of which has a row.

    Raises:
        DfkdError: There are no results yet.
    """
    if len(params.students) > 1:
        return Results(compare(params, failed=failed), "")
    own = params.for_student(*params.students)
    return Results(figures_text(own), pointers_text(own))


def results_text(params: Params, results: Results | None = None) -> str:
    """Return the whole text, with the time of the last run.

    Args:
        params: Parameters of the students.
        results: Result of `results_of`, if it is known already.

    Raises:
        DfkdError: There are no results yet.
    """
    time = run_time(params.for_student(*params.students)) if len(params.students) == 1 else ""
    return (results or results_of(params)).text(time)
