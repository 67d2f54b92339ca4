"""`dfkd run`: the work before and after the pipeline's flow."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from functools import partial

from dfkd_core.models.factories import factory_file
from dfkd_core.teachers.loading import source_files
from dfkd_flows.run.ahead import Outlook, look_ahead
from dfkd_flows.run.delivery import described_delivery
from dfkd_flows.run.ready import check_ready
from dfkd_flows.run.table import PUBLISHED, is_published, note_run, render
from dfkd_flows.run.unchanged import States
from dfkd_flows.session.display import say
from dfkd_flows.session.server import needing_server, start_server
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import PARAMS_FILE
from dfkd_flows.settings.settling import Plan, planned, settle
from dfkd_flows.stages.command import STAGES
from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.caching.workspace import LATENCY, STATE, STORE
from dfkd_tasks.dvc_project.status import LOCK, changed_stages, inputs_and_outputs
from dfkd_tasks.mlflow_store.registry import SCHEMES

__all__ = ["run_all"]

# Written by the run itself, after the results.
_NOTES = (PUBLISHED, STORE, LATENCY, STATE / "run.json", STATE / "timings")
_CODE = tuple(PACKAGES / name for name in ("dfkd_core", "dfkd_tasks", "dfkd_flows"))


def run_all(
    preset: str | None,
    assignments: Sequence[str],
    *,
    trusted: Collection[str] = (),
    start: float,
    outlook: Future[Outlook] | None = None,
) -> None:
    """Settle the parameters, run the pipeline if something has changed, and show the table. Hold the project's lock.

    Args:
        preset: Preset that params.yaml is set to first.
        assignments: Changes made after it.
        trusted: Factories that a stored teacher may call.
        start: When the command was started, in seconds since the epoch.
        outlook: Result of an earlier `look_ahead`; only without preset and assignments.

    Raises:
        DfkdError: The input has a fault, and params.yaml is as it was; or a stage failed.
    """
    with planned(preset, assignments, trusted=trusted) as plan:
        ahead = _settled(plan, outlook)
    if ahead.changed or not is_published():
        _run_changed(plan.params, ahead, start)
    else:
        say(_unchanged(plan.params))
    _note_for_the_next(plan)


def _settled(plan: Plan, outlook: Future[Outlook] | None) -> Outlook:
    """Return which stages have changed after the parameters are settled; if none have, nothing is checked."""
    before = outlook.result() if outlook else None
    if not plan.changes:
        before = before or look_ahead().result()
        if before.changed or not is_published():
            check_ready(plan.params)
            settle(plan)
        return before
    check_ready(plan.params)
    settle(plan)
    for change in plan.shown():
        say(f"  {change}")
    if plan.files_changed:
        say("The files of the teacher have changed")
    return Outlook(changed=changed_stages(), server=before.server) if before else look_ahead().result()


def _run_changed(params: Params, ahead: Outlook, start: float) -> None:
    if ahead.changed:
        names = [name for name in STAGES if name in ahead.changed]
        changed = f"Changed: {', '.join(names)}; the stages that depend on them follow"
        say(changed if LOCK.is_file() else "There are no results yet: all stages run")
    else:
        say("All stages are up to date; the student is not registered yet")
    server = ahead.server or start_server()
    # Imported while the server starts.
    from dfkd_flows.pipeline import NotDeliveredError, settled_pipeline

    server.wait()
    try:
        with needing_server(server):
            made = settled_pipeline(params)
    except NotDeliveredError:
        _show(params, start)
        raise
    _show(params, start)
    say(described_delivery(made))


def _unchanged(params: Params) -> str:
    """Return the answer of a run that has nothing to do."""
    return f"Nothing has changed: all stages are up to date and the student is registered.\n{render(params)}"


def _note_for_the_next(plan: Plan) -> None:
    """Let the next run answer at once if it has nothing to do; MLflow alone knows if a teacher there has changed."""
    if plan.params.teacher.source.model.startswith(SCHEMES):
        return
    student = factory_file(plan.params.distillation.student)
    files = [*source_files(plan.source).values(), *([student] if student else [])]
    states = States([*inputs_and_outputs(), PARAMS_FILE, *files, *_CODE])
    # Somebody may have edited a file while the run worked.
    if states.are_old and not changed_stages():
        states.note_answer(partial(_unchanged, plan.params), notes=_NOTES)


def _show(params: Params, start: float) -> None:
    note_run(start, time.time())
    say(render(params))
