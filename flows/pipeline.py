"""The whole pipeline: settle the parameters, reproduce with DVC, push to the remote, publish in MLflow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefect import State, flow
from prefect.runtime import deployment, flow_run
from prefect.states import Failed

from dfkd_core.errors import DfkdError
from dfkd_flows.notify.report import untrusted
from dfkd_flows.report.making import report_run, report_trial
from dfkd_flows.run.announcing import announce
from dfkd_flows.run.artefacts import show_results
from dfkd_flows.run.outcome import Made
from dfkd_flows.run.ready import check_ready
from dfkd_flows.run.trial import chosen_students, run_trial, trial_changes
from dfkd_flows.session.environment import enter_project, prepare_environment
from dfkd_flows.session.one_run import only_run
from dfkd_flows.session.own_code import start_again
from dfkd_flows.session.services import flow_page
from dfkd_flows.session.starter import starter
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.settings.settling import planned, settle
from dfkd_flows.shown.log import note, show_run
from dfkd_flows.shown.names import run_name
from dfkd_flows.shown.parent import end_sub_runs, handing_over, reasons_of_sub_runs
from dfkd_flows.stages.caching import FLOW_OPTIONS
from dfkd_flows.stages.names import last_stages, up_to_date
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.dvc_project.git_pull import pull_repository
from dfkd_tasks.dvc_project.status import changed_stages
from dfkd_tasks.dvc_project.versioning import StageFailedError, push, reproduce
from dfkd_tasks.dvc_project.versioning import pull as dvc_pull
from dfkd_tasks.mlflow_store.addresses import described_store
from dfkd_tasks.mlflow_store.readiness import check_store
from dfkd_tasks.records.foreign import naming

if TYPE_CHECKING:
    from dfkd_tasks.mlflow_store.publishing import Publication

__all__ = ["pipeline", "publication", "settled_pipeline"]

_OPTIONS: dict[str, Any] = {**FLOW_OPTIONS, "on_failure": [announce], "on_completion": [announce]}


# At a terminal, whoever stops a run knows it; a night that is stopped is reported.
@flow(name="pipeline", **_OPTIONS, on_crashed=[end_sub_runs, announce], on_cancellation=[end_sub_runs, announce])
def pipeline(
    preset: str | None = None,
    overrides: list[str] | None = None,
    students: list[str] | None = None,
    pull: bool = False,
    teacher: str | None = None,
    epochs: int | None = None,
    num_images: int | None = None,
    git_pull: bool = False,
) -> Made | State[Any]:
    """Run everything that has changed and publish the results; the deployments call this.

    With a preset or other changes it is a trial, see `dfkd_flows.run.trial`: params.yaml and the results of the project
    stay as they are, and the students are logged and not registered.

    Args:
        preset: Preset that replaces the values of params.yaml.
        overrides: Changes like `synthesis.num_images=2000`, made after it.
        students: Names of the students to make; all of the teacher if there are none.
        pull: Fetch results from the DVC remote before anything is computed.
        teacher: Name of the teacher whose students are made; all if there is none.
        epochs: Epochs of the distillation, in place of those of params.yaml.
        num_images: Images of the transfer set, in place of those of params.yaml.
        git_pull: Pull the project's git repository first. If there are new commits, the run starts again with them.

    Returns:
        What was made. If a student was refused, or results are missing, the state is failed and has a name of its own.
    """
    prepare_environment(enter_project())
    with only_run(wait=True):
        pulled = pull_repository() if git_pull else ""
    if pulled and deployment.id:
        start_again()
    with only_run(wait=True):
        params = load_params()
        names = chosen_students(params, teacher, students or ())
        changes = [*trial_changes(params, names, epochs=epochs, num_images=num_images), *(overrides or [])]
        if preset or changes:
            return _ended(lambda: _tried(params.only(names), preset, changes, pull=pull))
        with planned(None, [], students=names) as plan:
            show_run(run_name(plan.chosen), plan.chosen)
            check_ready(plan.chosen)
            settle(plan)
        return _ended(lambda: _run(plan.chosen, whole=plan.chosen is plan.params, pull=pull))


@flow(name="pipeline", **_OPTIONS)
def settled_pipeline(params: Params, *, whole: bool = True) -> Made | State[Any]:
    """Run everything that has changed and publish the results, with parameters that were checked and written before.

    Args:
        params: Parameters of the students to make.
        whole: Whether they are all; then stages that the user has added to dvc.yaml run too.
    """
    show_run(run_name(params), params)
    return _ended(lambda: _run(params, whole=whole, pull=False))


@flow(name="publish", **_OPTIONS)
def publication(params: Params) -> Made | State[Any]:
    """Publish and copy results that are made already."""
    show_run(f"publish {run_name(params)}", params)
    return _ended(lambda: _deliver(params))


def _ended(work: Callable[[], Made]) -> Made | State[Any]:
    """Do the work of a flow and return its result, or the state in which the flow ends if it is not green."""
    try:
        made = work()
    except StageFailedError as failure:
        return Failed(message=reasons_of_sub_runs() or "A stage failed; its reason is in its output", data=failure)
    error = made.error()
    return Failed(name=error.state, message=str(error), data=error) if error else made


def _tried(params: Params, preset: str | None, changes: Sequence[str], *, pull: bool) -> Made:
    """Make the students with other parameters; nothing of it is published."""
    show_run(f"trial of {run_name(params)}", params)
    with handing_over():
        run_trial(preset, changes, tuple(params.students), pull=pull, on_logged=report_trial)
    return Made(params, {})


def _run(params: Params, *, whole: bool, pull: bool) -> Made:
    # MLflow takes seconds to import, during which the stages already run.
    threading.Thread(target=import_module, args=["dfkd_tasks.mlflow_store.publishing"], daemon=True).start()
    for fault in untrusted(params.notify).values():
        note(fault)
    if pull:
        dvc_pull()
    with starter():
        failed = _reproduce(params, whole=whole)
    return _deliver(params, failed)


def _reproduce(params: Params, *, whole: bool) -> tuple[str, ...]:
    """Reproduce the stages of all students; return the names of those that failed, if it is not the only one."""
    try:
        with handing_over():
            reproduce(*([] if whole else last_stages(params)))
    except StageFailedError:
        made = up_to_date(params, changed_stages())
        failed = tuple(name for name in params.students if name not in made)
        if not failed or len(failed) == len(params.students):
            raise
        return failed
    return ()


def _deliver(params: Params, failed: tuple[str, ...] = ()) -> Made:
    """Publish the results in MLflow and copy them to the DVC remote; one is done even if the other fails."""
    pushed = push.submit()
    faults: list[str] = []
    missing: list[str] = []
    published: dict[str, Publication] = {}
    names = [name for name in params.students if name not in failed]
    for name in names:
        try:
            published[name] = _published(params.for_student(name))
        except DfkdError as error:
            faults.append(str(error))
    if len(published) < len(names):
        missing.append("registered")
    try:
        pushed.result()
    except DfkdError as error:
        faults.append(str(error))
        missing.append("copied to the remote")
    if missing:
        faults.append(
            f"The results are kept, but not {' and not '.join(missing)}. When the service can be used again, repeat "
            "this step with: dfkd publish"
        )
    # One fault of MLflow concerns all students.
    made = Made(params, published, failed, tuple(dict.fromkeys(faults)), flow_page=flow_page(str(flow_run.id)))
    report_run(made)
    return show_results(made)


def _published(params: Params) -> Publication:
    check_store(params.registry.experiment)
    # One of earlier results would be logged with these.
    StudentFiles(params.student_name).report.unlink(missing_ok=True)
    from dfkd_flows.run.publishing import publish

    with naming(f"MLflow, {described_store()}"):
        return publish(params)
