"""The flows of `dfkd tune`: the teacher and its statistics, then the search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow

from dfkd_flows.session.display import say
from dfkd_flows.settings.overrides import apply_overrides
from dfkd_flows.settings.params import Params
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for
from dfkd_flows.tune.results import assignments, changes_text, open_search
from dfkd_flows.tune.search import Tried
from dfkd_flows.tune.space import reduced
from dfkd_tasks.caching.workspace import TeacherFiles, reference
from dfkd_tasks.dvc_project.versioning import reproduce
from dfkd_tasks.stages.tuning import try_settings

__all__ = ["make_inputs", "tune"]


@flow(name="tune inputs", **FLOW_OPTIONS)
def make_inputs(teacher: str) -> None:
    """Update a teacher and its statistics."""
    reproduce(f"statistics@{teacher}")


@flow(name="tune", **FLOW_OPTIONS)
def tune(params: Params, minutes: float, trials: int | None) -> str:
    """Search for settings whose students score higher than those of `params`."""
    files = TeacherFiles(params.teacher_name)
    teacher, statistics = reference(files.network), reference(files.statistics)
    search = open_search(params)
    before = len(search.tried())
    compute = compute_for(params.execution)
    if before:
        say(f"  continuing after {before} settings of an earlier search")

    def score(changes: Mapping[str, Any], seed_offset: int) -> float:
        own = reduced(apply_overrides(params, assignments(changes)))
        found: float = try_settings(
            teacher,
            statistics,
            own.synthesis,
            own.distillation,
            seed=params.seed + seed_offset,
            compute=compute,
        )
        return found

    search.run(score, seconds=60 * minutes, max_trials=trials, on_tried=_show)
    return f"{len(search.tried()) - before} settings tried"


def _show(tried: Tried) -> None:
    outcome = f"failed: {tried.error}" if tried.score is None else f"{tried.score:.4f}"
    say(f"  {outcome} in {tried.seconds:.0f} s: {changes_text(tried.changes)}")
