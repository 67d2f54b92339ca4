"""How a run ended: what it made, and the name of its state in Prefect if it is not green."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfkd_core.errors import DfkdError
from dfkd_flows.settings.params import Params

if TYPE_CHECKING:
    from dfkd_flows.run.results import Results
    from dfkd_tasks.mlflow_store.publishing import Publication

__all__ = [
    "DroppedError",
    "Made",
    "NotDeliveredError",
    "NotGreenError",
    "RefusedError",
    "RejectedError",
    "StudentsFailedError",
    "is_dropped",
    "made_by",
]

_COMPARISON = ("registry.margin",)


class NotGreenError(DfkdError):
    """A run ended, and something in it needs a look."""

    state = "Failed"
    """Name of the run's state in Prefect."""

    def __init__(self, message: str, made: Made) -> None:
        """Keep what the run made nevertheless."""
        super().__init__(message)
        self.made = made


class StudentsFailedError(NotGreenError):
    """Some of several students were not made; the others are."""


class NotDeliveredError(NotGreenError):
    """The results are made and kept, but not registered in MLflow, or not copied to the DVC remote."""

    state = "NotDelivered"


class RefusedError(NotGreenError):
    """The rules refused a student, the champion stays. On a terminal this is a result and no failure."""


class RejectedError(RefusedError):
    """A student breaks a rule of its own: a minimum, or a limit."""

    state = "Rejected"


class DroppedError(RefusedError):
    """A student keeps the rules of its own, but is not as good as the champion."""

    state = "Dropped"


@dataclass(frozen=True, slots=True)
class Made:
    """What a run made."""

    params: Params
    """Parameters of the students of the run."""
    published: Mapping[str, Publication]
    """Publications of the students that were made."""
    failed: tuple[str, ...] = ()
    """Names of the others, whose stages have printed the reasons."""
    faults: tuple[str, ...] = ()
    """Why results were not registered, or not copied to the DVC remote."""
    flow_page: str = ""
    """Page of the flow's run on Prefect's server; empty if there is none."""
    results: Results | None = None
    """The text on the students that were made; None if it could not be made."""

    def error(self) -> NotGreenError | None:
        """Return the gravest thing that happened, None if the run is green."""
        faults = "\n".join(self.faults)
        if self.failed:
            names = ", ".join(self.failed)
            again = f"Not made: {names}; the reasons are above. Continue with: dfkd run {' '.join(self.failed)}"
            return StudentsFailedError(f"{faults}\n{again}".strip(), self)
        if faults:
            return NotDeliveredError(faults, self)
        refused = [found for found in self.published.values() if found.refused]
        if not refused:
            return None
        kind = DroppedError if all(map(is_dropped, refused)) else RejectedError
        return kind("\n".join(_refusals(self.published)), self)

    def check(self) -> None:
        """Raise what failed; a refusal is a result.

        Raises:
            StudentsFailedError: A student was not made.
            NotDeliveredError: Results were not registered or not copied.
        """
        error = self.error()
        if error and not isinstance(error, RefusedError):
            raise error


def made_by(flow: Callable[[], object]) -> Made:
    """Run a flow of the pipeline and return what it made, also if its state is not green.

    Raises:
        DfkdError: It failed before it had anything to show.
    """
    try:
        made = flow()
    except NotGreenError as error:
        return error.made
    assert isinstance(made, Made)
    return made


def is_dropped(published: Publication) -> bool:
    """Return whether a refused student only broke the comparison with the champion."""
    return published.broken == _COMPARISON


def _refusals(published: Mapping[str, Publication]) -> Iterator[str]:
    for name, found in published.items():
        if found.refused:
            stays = f"the champion stays version {found.champion}" if found.champion else "there is no champion"
            start = f"{name}: " if len(published) > 1 else ""
            yield f"{start}{found.model} version {found.version} is {found.reason}; {stays}"
