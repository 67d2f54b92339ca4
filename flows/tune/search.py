"""The search of `dfkd tune`: a study on disk with the finished trials, which draws the next ones in a time budget."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dfkd_core.common.seeding import derive_seed
from dfkd_core.errors import DfkdError
from dfkd_flows.tune.space import Domain, LogRange

__all__ = ["NUM_REPEATS", "Score", "Search", "Tried"]

NUM_REPEATS = 3
"""Further seeds on which the best settings and the present ones are compared."""

Score = Callable[[Mapping[str, Any], int], float]
"""Returns the proxy score of changes to the present settings; the number is added to the seed."""

_ERROR = "error"
# Few: a search of minutes has about twenty trials, and the present settings are rarely bad.
_RANDOM_TRIALS = 6
_SIGNIFICANT_DIGITS = 3
# Factor by which the comparison at the end may take longer than the first time.
_MARGIN = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A finished trial."""

    changes: dict[str, Any]
    """New values by dotted path; empty for the present settings."""
    score: float | None
    """Proxy score; None if the trial failed."""
    seconds: float
    """Seconds that it took."""
    error: str = ""
    """Reason of the failure."""


class Search:
    """A search for settings with a higher score; finished trials are kept in one file.

    The next trial depends only on the seed and on the finished trials, so an interrupted search continues with the same
    trials as an uninterrupted one.
    """

    def __init__(self, path: Path, space: Mapping[str, Domain], present: Mapping[str, Any], *, seed: int) -> None:
        """Open or create the search in the file at `path`.

        Args:
            path: The file; another space, other present values or another score need another file.
            space: Allowed values by path.
            present: The present value of each path.
            seed: Seed of the draws.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._seed = space, seed
        self._present = {name: present[name] for name in space}
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
        )
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Its process was ended.
            self._study.tell(trial.number, state=TrialState.FAIL)

    def tried(self) -> list[Tried]:
        """Return the finished trials in their order."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._describe(t) for t in trials if t.state is TrialState.COMPLETE or _ERROR in t.user_attrs]

    def ranked(self) -> list[Tried]:
        """Return the trials that did not fail, the best first."""
        return sorted((t for t in self.tried() if t.score is not None), key=lambda t: -(t.score or 0.0))

    def repeats(self, changes: Mapping[str, Any]) -> list[float]:
        """Return the measured scores of settings with further seeds."""
        return list(self._study.user_attrs.get(_repeats_key(changes), []))

    def is_clearly_better(self) -> bool:
        """Return whether the best settings are ahead of the present ones on all further seeds.

        Three scores are all above three others by chance in 1 of 20 cases.
        """
        best, present = self.repeats(self.ranked()[0].changes), self.repeats({})
        return len(best) == len(present) == NUM_REPEATS and min(best) > max(present)

    def run(
        self,
        score: Score,
        *,
        seconds: float,
        max_trials: int | None = None,
        on_tried: Callable[[Tried], None] = lambda tried: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Try the present settings, then others, then the best and the present ones with further seeds.

        The first trial always runs. A further one starts only if it will probably end in time, judged by those before.

        Args:
            score: Scores settings.
            seconds: Time budget of this call.
            max_trials: Largest number of settings to try, including those of earlier calls.
            on_tried: Called after each trial.
            clock: Returns the time in seconds.

        Raises:
            DfkdError: The present settings fail. A failure of others is recorded, and the search continues.
        """
        deadline = clock() + seconds

        def fits(expected: float) -> bool:
            return clock() + expected <= deadline

        while (max_trials is None or len(self.tried()) < max_trials) and fits(self._expected_seconds()):
            on_tried(self._try_next(score))
        self._repeat(score, fits)

    def _expected_seconds(self) -> float:
        """Return the probable seconds of one more trial and the comparison at the end; minus infinity for the first."""
        ranked = self.ranked()
        if not ranked:
            return -math.inf
        present = next(tried for tried in ranked if not tried.changes)
        comparison = _MARGIN * NUM_REPEATS * (ranked[0].seconds + present.seconds)
        return comparison + statistics.median(tried.seconds for tried in ranked)

    def _try_next(self, score: Score) -> Tried:
        finished = self.tried()
        if not any(tried.score is not None and not tried.changes for tried in finished):
            self._study.enqueue_trial(self._present, skip_if_exists=False)
        # Each trial has its own sampler, so the draws do not depend on interruptions.
        seed = derive_seed(self._seed, "tune", len(finished)) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_TRIALS)
        trial = self._study.ask()
        changes = self._changes({path: _suggest(trial, path, domain) for path, domain in self._space.items()})
        try:
            found = score(changes, 0)
        except DfkdError as error:
            if not changes:
                raise
            trial.set_user_attr(_ERROR, str(error))
            return self._describe(self._study.tell(trial, state=TrialState.FAIL))
        return self._describe(self._study.tell(trial, found))

    def _repeat(self, score: Score, fits: Callable[[float], bool]) -> None:
        """Score the best and the present settings alternately with further seeds."""
        best = self.ranked()[0]
        for number in range(NUM_REPEATS if best.changes else 0):
            for changes in ({}, best.changes):
                known = self.repeats(changes)
                if len(known) <= number:
                    if not fits(best.seconds):
                        return
                    self._study.set_user_attr(
                        _repeats_key(changes), [*known, _score_or_zero(score, changes, number + 1)]
                    )

    def _changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {path: _rounded(value) for path, value in values.items() if value != self._present[path]}

    def _describe(self, trial: FrozenTrial) -> Tried:
        return Tried(
            changes=self._changes(trial.params),
            score=trial.value,
            seconds=trial.duration.total_seconds() if trial.duration else 0.0,
            error=str(trial.user_attrs.get(_ERROR, "")),
        )


def _suggest(trial: optuna.Trial, path: str, domain: Domain) -> Any:
    if isinstance(domain, LogRange):
        return trial.suggest_float(path, domain.low, domain.high, log=True)
    return trial.suggest_categorical(path, domain)


def _rounded(value: Any) -> Any:
    """Return a number with three significant digits; more would have no meaning."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _score_or_zero(score: Score, changes: Mapping[str, Any], repeat: int) -> float:
    """Return 0 for settings that fail with another seed."""
    try:
        return score(changes, repeat)
    except DfkdError:
        return 0.0


def _repeats_key(changes: Mapping[str, Any]) -> str:
    return f"repeats {sorted(changes.items())}"
