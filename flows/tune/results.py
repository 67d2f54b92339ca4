"""The result of `dfkd tune`: the table, its certainty, and the command that uses it."""

from __future__ import annotations

import shlex
import statistics
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from dfkd_core.common.digests import json_digest
from dfkd_flows.session.display import say
from dfkd_flows.settings.overrides import apply_overrides, changes_between, place, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.tune.search import NUM_REPEATS, Search, Tried
from dfkd_flows.tune.space import reduced, search_space
from dfkd_tasks.caching.code import code_digest
from dfkd_tasks.caching.workspace import STATE, TeacherFiles, reference

__all__ = ["apply_best", "assignments", "changes_text", "open_search", "render"]

_ROWS = 5
_WIDTH = 119
_CHANGES_COLUMN = 26


def open_search(params: Params) -> Search:
    """Open the search that starts from `params`; its address covers all inputs of the scores."""
    space, small = search_space(params), reduced(params)
    files = TeacherFiles(params.teacher_name)
    address = {
        "teacher": reference(files.network).sha256,
        "statistics": reference(files.statistics).sha256,
        "settings": [small.seed, small.synthesis, small.distillation],
        "space": sorted(space.items()),
        "code": code_digest("tune"),
    }
    path = STATE / "tune" / f"{json_digest(address)[:24]}.journal"
    return Search(path, space, flatten(params), seed=params.seed)


def assignments(changes: Mapping[str, Any]) -> list[str]:
    """Return changes in the form of `--set`."""
    return [f"{path}={value}" for path, value in changes.items()]


def changes_text(changes: Mapping[str, Any]) -> str:
    """Return changes on one line, with the last two names of each path."""
    parts = (f"{'.'.join(path.split('.')[-2:])} {value}" for path, value in changes.items())
    return ", ".join(parts) or "params.yaml as it is"


def render(search: Search, params: Params, student: str) -> str:
    """Return the best settings, the lead of the first, and the command that uses it.

    Args:
        search: The search.
        params: The project's parameters.
        student: Name of the student that the search is for.
    """
    return "\n".join(["", *_table(search), "", *_verdict(search, params, student), ""])


def apply_best(search: Search, params: Params, student: str) -> None:
    """Write the best settings into params.yaml if they are clearly better; arguments as in `render`."""
    if not search.is_clearly_better():
        say("params.yaml is unchanged.")
        return
    # Every value was tried, so no check is needed.
    best = _placed(search.ranked()[0].changes, params, student)
    changes = changes_between(params, apply_overrides(params, assignments(best)))
    write_params(changes)
    for change in changes:
        say(f"  {change}")
    say("Written into params.yaml. Make the student with: dfkd run")


def _table(search: Search) -> Iterator[str]:
    ranked = search.ranked()
    failed = len(search.tried()) - len(ranked)
    yield f"{'rank':>6}{'proxy':>9}{'seconds':>9}  changes"
    for rank, tried in enumerate(ranked, start=1):
        if rank <= _ROWS or not tried.changes:
            yield _row(rank, tried)
    yield f"{len(ranked)} settings" + (f"; {failed} more failed" if failed else "")


def _row(rank: int, tried: Tried) -> str:
    head = f"{rank:>6}{tried.score:>9.4f}{tried.seconds:>9.0f}"
    lines = textwrap.wrap(changes_text(tried.changes), _WIDTH - _CHANGES_COLUMN)
    return f"\n{' ' * _CHANGES_COLUMN}".join([f"{head}  {lines[0]}", *lines[1:]])


def _verdict(search: Search, params: Params, student: str) -> Iterator[str]:
    best = search.ranked()[0]
    again, present = search.repeats(best.changes), search.repeats({})
    yield "Chosen without real data: the proxy is agreement with the teacher on images that no student was trained on,"
    yield "and hints at the real accuracy; see docs/proxy.md."
    if not best.changes:
        yield "No setting was found that is better than params.yaml as it is."
        return
    if len(again) < NUM_REPEATS or len(present) < NUM_REPEATS:
        yield "No time was left to compare the first with params.yaml on further seeds, so its lead may be chance."
        yield "Continue with the same command."
        return
    ahead = statistics.fmean(again) - statistics.fmean(present)
    yield f"With {NUM_REPEATS} further seeds the first has {_figures(again)} against {_figures(present)}"
    yield f"of params.yaml as it is: {ahead:+.4f} on average."
    if not search.is_clearly_better():
        yield "No setting was found that is clearly better."
        return
    yield "All of them are ahead, which happens by chance in 1 of 20 cases. Use it with:"
    items = assignments(_placed(best.changes, params, student))
    yield "  " + shlex.join(["dfkd", "run", *(word for item in items for word in ("--set", item))])


def _placed(changes: Mapping[str, Any], params: Params, student: str) -> dict[str, Any]:
    return {place(path, params, student): value for path, value in changes.items()}


def _figures(scores: list[float]) -> str:
    return ", ".join(f"{score:.4f}" for score in scores)
