"""The whole pipeline: settle the parameters, reproduce with DVC, push to the remote, publish in MLflow."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.runtime import flow_run

from dfkd_core.errors import DfkdError
from dfkd_flows.run.ready import check_ready
from dfkd_flows.session.environment import enter_project, prepare_environment
from dfkd_flows.session.one_run import only_run
from dfkd_flows.session.services import flow_page
from dfkd_flows.session.starter import starter
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.settling import planned, settle
from dfkd_flows.stages.caching import FLOW_OPTIONS
from dfkd_flows.stages.names import last_stages, up_to_date
from dfkd_tasks.dvc_project.status import changed_stages
from dfkd_tasks.dvc_project.versioning import StageFailedError, push, reproduce
from dfkd_tasks.dvc_project.versioning import pull as dvc_pull
from dfkd_tasks.mlflow_store.addresses import described_store
from dfkd_tasks.mlflow_store.readiness import check_store
from dfkd_tasks.records.foreign import is_foreign, reason

if TYPE_CHECKING:
    from dfkd_tasks.mlflow_store.publishing import Publication

__all__ = ["Made", "NotDeliveredError", "StudentsFailedError", "pipeline", "publication", "settled_pipeline"]


class NotDeliveredError(DfkdError):
    """The results are made and kept, but not registered in MLflow, or not copied to the DVC remote."""


class StudentsFailedError(DfkdError):
    """Some of several students were not made; the others are."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a run made."""

    published: Mapping[str, Publication]
    """Publications of the students that were made."""
    failed: tuple[str, ...] = ()
    """Names of the others, whose stages have printed the reasons."""
    faults: tuple[str, ...] = ()
    """Why results were not registered, or not copied to the DVC remote."""
    flow_page: str = ""
    """Page of the flow's run on Prefect's server; empty if there is none."""

    def check(self) -> None:
        """Raise what failed.

        Raises:
            StudentsFailedError: A student was not made.
            NotDeliveredError: Results were not registered or not copied.
        """
        faults = "\n".join(self.faults)
        if self.failed:
            names = ", ".join(self.failed)
            again = f"Not made: {names}; the reasons are above. Continue with: dfkd run {' '.join(self.failed)}"
            raise StudentsFailedError(f"{faults}\n{again}".strip())
        if faults:
            raise NotDeliveredError(faults)


@flow(name="pipeline", **FLOW_OPTIONS)
def pipeline(
    preset: str | None = None,
    overrides: list[str] | None = None,
    students: list[str] | None = None,
    pull: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run everything that has changed and publish the results. The deployment in prefect.yaml calls this.

    Args:
        preset: Preset that params.yaml is set to first.
        overrides: Changes of params.yaml like `synthesis.num_images=2000`, made after it.
        students: Names of the students to make; all if there are none.
        pull: Fetch results from the DVC remote before anything is computed.

    Returns:
        The publication of each student by its name.
    """
    prepare_environment(enter_project())
    with only_run():
        with planned(preset, overrides or [], students=students or ()) as plan:
            check_ready(plan.chosen)
            settle(plan)
        made = _run(plan.chosen, whole=plan.chosen is plan.params, pull=pull)
    made.check()
    return {name: dataclasses.asdict(publication) for name, publication in made.published.items()}


@flow(name="pipeline", **FLOW_OPTIONS)
def settled_pipeline(params: Params, *, whole: bool = True) -> Made:
    """Run everything that has changed and publish the results, with parameters that were checked and written before.

    Args:
        params: Parameters of the students to make.
        whole: Whether they are all; then stages that the user has added to dvc.yaml run too.
    """
    return _run(params, whole=whole, pull=False)


@flow(name="publish", **FLOW_OPTIONS)
def publication(params: Params) -> Made:
    """Publish and copy results that are made already."""
    return _deliver(params)


def _run(params: Params, *, whole: bool, pull: bool) -> Made:
    # MLflow takes seconds to import, during which the stages already run.
    threading.Thread(target=import_module, args=["dfkd_tasks.mlflow_store.publishing"], daemon=True).start()
    if pull:
        dvc_pull()
    with starter():
        failed = _reproduce(params, whole=whole)
    return _deliver(params, failed)


def _reproduce(params: Params, *, whole: bool) -> tuple[str, ...]:
    """Reproduce the stages of all students; return the names of those that failed, if it is not the only one."""
    try:
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
    return Made(published, failed, tuple(dict.fromkeys(faults)), flow_page=flow_page(str(flow_run.id)))


def _published(params: Params) -> Publication:
    check_store(params.registry.experiment)
    from dfkd_flows.run.publishing import publish

    try:
        return publish(params)
    except Exception as error:
        if isinstance(error, DfkdError) or not is_foreign(error):
            raise
        raise DfkdError(f"MLflow, {described_store()}: {reason(error)}") from error
