"""The search of `dfkd tune`: a study on disk that says what was tried and what to try next, within a time budget."""

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
from flows.tune.space import Domain, LogRange

__all__ = ["NUM_REPEATS", "Score", "Search", "Tried"]

NUM_REPEATS = 3
"""Further seeds with which the best settings and the present ones are compared."""

Score = Callable[[Mapping[str, Any], int], float]
"""Gives the proxy score of changes to the present settings, with a number that is added to the seed."""

_ERROR = "error"
# Few: a search of minutes has some twenty trials, and what there is is seldom far from good.
_RANDOM_TRIALS = 6
_SIGNIFICANT_DIGITS = 3
# By how much longer than the first time the comparison at the end may take.
_MARGIN = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Settings that were tried."""

    changes: dict[str, Any]
    """New values by dotted path; empty for the present settings."""
    score: float | None
    """Proxy score; None if they failed."""
    seconds: float
    """How long it took."""
    error: str = ""
    """Why they failed."""


class Search:
    """A search for settings with a higher score; whatever is finished is kept in one file.

    What is tried next depends on the seed and on what is finished, so that an interrupted search goes on as an
    undisturbed one would have.
    """

    def __init__(self, path: Path, space: Mapping[str, Domain], present: Mapping[str, Any], *, seed: int) -> None:
        """Open or begin the search in the file at `path`.

        Args:
            path: The file; has to be another one for other spaces, present values and scores.
            space: What can be changed.
            present: The present value of each of its paths.
            seed: Addresses the draws.
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
            # Its process was stopped.
            self._study.tell(trial.number, state=TrialState.FAIL)

    def tried(self) -> list[Tried]:
        """Return what is finished, in the order in which it was tried."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._describe(t) for t in trials if t.state is TrialState.COMPLETE or _ERROR in t.user_attrs]

    def ranked(self) -> list[Tried]:
        """Return what did not fail, the best first."""
        return sorted((t for t in self.tried() if t.score is not None), key=lambda t: -(t.score or 0.0))

    def repeats(self, changes: Mapping[str, Any]) -> list[float]:
        """Return the scores of settings with further seeds, as far as they were measured."""
        return list(self._study.user_attrs.get(_repeats_key(changes), []))

    def is_clearly_better(self) -> bool:
        """Tell whether the best settings are ahead of the present ones with all further seeds.

        That every one of three scores is above every one of three others happens by chance in 1 of 20 cases.
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

        Nothing but the first trial is begun that is not likely to end in time, judged by those so far.

        Args:
            score: Judges settings.
            seconds: Time budget of this call.
            max_trials: Most settings to try, those of earlier calls included.
            on_tried: Told after each.
            clock: Gives the seconds.

        Raises:
            DfkdError: The present settings fail; others that do are noted and the search goes on.
        """
        deadline = clock() + seconds

        def fits(expected: float) -> bool:
            return clock() + expected <= deadline

        while (max_trials is None or len(self.tried()) < max_trials) and fits(self._expected_seconds()):
            on_tried(self._try_next(score))
        self._repeat(score, fits)

    def _expected_seconds(self) -> float:
        """Return what one more trial and the comparison at the end are likely to take; the first always fits."""
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
        # A sampler of its own for each trial, so that the draws do not depend on how often the search was stopped.
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
        """Measure the best settings and the present ones with further seeds, in turns."""
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
    """Return a number with few digits: more would say nothing."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _score_or_zero(score: Score, changes: Mapping[str, Any], repeat: int) -> float:
    """Return 0 for settings that fail with another seed."""
    try:
        return score(changes, repeat)
    except DfkdError:
        return 0.0


def _repeats_key(changes: Mapping[str, Any]) -> str:
    return f"repeats {sorted(changes.items())}"
