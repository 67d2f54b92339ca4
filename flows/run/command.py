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
from dfkd_flows.run.outcome import made_by
from dfkd_flows.run.ready import check_ready
from dfkd_flows.run.results import results_of, results_text
from dfkd_flows.run.table import is_published, note_run
from dfkd_flows.run.unchanged import States
from dfkd_flows.session.display import say
from dfkd_flows.session.server import needing_server, start_server
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import PARAMS_FILE
from dfkd_flows.settings.settling import Plan, planned, settle
from dfkd_flows.stages.names import addresses, label, up_to_date
from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.caching.workspace import STATE, STORE
from dfkd_tasks.dvc_project.git_state import commit_hint
from dfkd_tasks.dvc_project.status import LOCK, changed_stages, inputs_and_outputs
from dfkd_tasks.mlflow_store.registry import SCHEMES
from dfkd_tasks.processes.background import note_of

__all__ = ["run_all"]

# Written by the run itself, after the results.
_NOTES = (STATE / "students", STATE / "timings", STORE, note_of("prefect"), note_of("mlflow"))
_CODE = tuple(PACKAGES / name for name in ("dfkd_core", "dfkd_tasks", "dfkd_flows"))


def run_all(
    preset: str | None,
    assignments: Sequence[str],
    *,
    students: Sequence[str] = (),
    trusted: Collection[str] = (),
    start: float,
    outlook: Future[Outlook] | None = None,
) -> None:
    """Settle the parameters, run the pipeline if something has changed, and show the table. Hold the project's lock.

    Args:
        preset: Preset that params.yaml is set to first.
        assignments: Changes made after it.
        students: Names of the students to make; all if there are none.
        trusted: Factories that a stored teacher may call.
        start: When the command was started, in seconds since the epoch.
        outlook: Result of an earlier `look_ahead`; only without preset and assignments.

    Raises:
        DfkdError: The input has a fault, and params.yaml is as it was; or a stage failed.
    """
    with planned(preset, assignments, students=students, trusted=trusted) as plan:
        ahead = _settled(plan, outlook)
    if ahead.changed or not _all_published(plan.chosen):
        _run_changed(plan, ahead, start)
    else:
        say(_unchanged(plan.chosen))
    _note_for_the_next(plan)


def _settled(plan: Plan, outlook: Future[Outlook] | None) -> Outlook:
    """Return which stages have changed after the parameters are settled; if none have, nothing is checked."""
    before = outlook.result() if outlook else None
    if not plan.changes:
        before = _chosen(plan, before or look_ahead().result())
        if before.changed or not _all_published(plan.chosen):
            check_ready(plan.chosen)
            settle(plan)
        return before
    check_ready(plan.chosen)
    settle(plan)
    for change in plan.shown():
        say(f"  {change}")
    for name in plan.files_changed:
        say(f"The files of the teacher{f' {name}' if len(plan.params.teachers) > 1 else ''} have changed")
    after = Outlook(changed=changed_stages(), server=before.server) if before else look_ahead().result()
    return _chosen(plan, after)


def _chosen(plan: Plan, outlook: Outlook) -> Outlook:
    """Return the outlook with the stages of the chosen students; with all, other stages in dvc.yaml count too."""
    if plan.chosen is plan.params:
        return outlook
    own = addresses(plan.chosen)
    return Outlook(changed=[address for address in outlook.changed if address in own], server=outlook.server)


def _all_published(params: Params) -> bool:
    return all(is_published(params.for_student(name)) for name in params.students)


def _run_changed(plan: Plan, ahead: Outlook, start: float) -> None:
    params = plan.chosen
    if ahead.changed:
        names = [label(address, plan.params) for address in addresses(params) if address in ahead.changed]
        changed = f"Changed: {', '.join(names)}; the stages that depend on them follow"
        say(changed if LOCK.is_file() else "There are no results yet: all stages run")
    else:
        missing = [name for name in params.students if not is_published(params.for_student(name))]
        which = f"these students are not registered yet: {', '.join(missing)}"
        one = len(plan.params.students) == 1
        say(f"All stages are up to date; {'the student is not registered yet' if one else which}")
    before = [name for name in up_to_date(params, ahead.changed) if is_published(params.for_student(name))]
    server = ahead.server or start_server()
    # Imported while the server starts.
    from dfkd_flows.pipeline import settled_pipeline

    server.wait()
    with needing_server(server):
        made = made_by(lambda: settled_pipeline(params, whole=plan.chosen is plan.params))
    note_run(params, start, time.time())
    if len(made.failed) < len(params.students):
        say(results_text(params, made.results or results_of(params, made.failed)))
    say(described_delivery(made, plan.params, known=before))
    if hint := commit_hint():
        say(hint)
    made.check()


def _unchanged(params: Params) -> str:
    """Return the answer of a run that has nothing to do."""
    registered = "the student is" if len(params.students) == 1 else "the students are"
    return f"Nothing has changed: all stages are up to date and {registered} registered.\n{results_text(params)}"


def _note_for_the_next(plan: Plan) -> None:
    """Let the next run answer at once if it has nothing to do; MLflow alone knows if a teacher there has changed."""
    teachers = [plan.params.for_teacher(name).teacher.source.model for name in plan.params.teachers]
    if plan.chosen is not plan.params or any(model.startswith(SCHEMES) for model in teachers):
        return
    networks = {plan.params.for_student(name).distillation.student for name in plan.params.students}
    files = [file for network in networks if (file := factory_file(network))]
    files += [file for source in plan.sources.values() for file in source_files(source).values()]
    states = States([*inputs_and_outputs(), PARAMS_FILE, *files, *_CODE])
    # Somebody may have edited a file while the run worked.
    if states.are_old and not changed_stages():
        states.note_answer(partial(_unchanged, plan.params), notes=_NOTES)
