"""The whole pipeline: settle the parameters, reproduce with DVC, push to the remote, publish in MLflow."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING

from prefect import flow
from prefect.runtime import flow_run

from dfkd_core.errors import DfkdError
from dfkd_flows.run.ready import check_ready
from dfkd_flows.session.environment import enter_project, prepare_environment
from dfkd_flows.session.one_run import only_run
from dfkd_flows.session.services import flow_page
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.settling import planned, settle
from dfkd_flows.stages.caching import FLOW_OPTIONS
from dfkd_tasks.dvc_project.versioning import pull as dvc_pull
from dfkd_tasks.dvc_project.versioning import push, reproduce
from dfkd_tasks.mlflow_store.addresses import described_store
from dfkd_tasks.mlflow_store.readiness import check_store
from dfkd_tasks.records.foreign import is_foreign, reason

if TYPE_CHECKING:
    from dfkd_tasks.mlflow_store.publishing import Publication

__all__ = ["NotDeliveredError", "pipeline", "publication", "settled_pipeline"]


class NotDeliveredError(DfkdError):
    """The results are made and kept, but not registered in MLflow, or not copied to the DVC remote."""


@flow(name="pipeline", **FLOW_OPTIONS)
def pipeline(preset: str | None = None, overrides: list[str] | None = None, pull: bool = False) -> dict[str, str]:
    """Run everything that has changed and publish the result. The deployment in prefect.yaml calls this.

    Args:
        preset: Preset that params.yaml is set to first.
        overrides: Changes of params.yaml like `synthesis.num_images=2000`, made after it.
        pull: Fetch results from the DVC remote before anything is computed.
    """
    prepare_environment(enter_project())
    with only_run():
        with planned(preset, overrides or []) as plan:
            check_ready(plan.params)
            settle(plan)
        return _run(plan.params, pull=pull)


@flow(name="pipeline", **FLOW_OPTIONS)
def settled_pipeline(params: Params) -> dict[str, str]:
    """Run everything that has changed and publish the result, with parameters that were checked and written before."""
    return _run(params, pull=False)


@flow(name="publish", **FLOW_OPTIONS)
def publication(params: Params) -> dict[str, str]:
    """Publish and copy results that are made already."""
    return _deliver(params)


def _run(params: Params, *, pull: bool) -> dict[str, str]:
    # MLflow takes seconds to import, during which the stages already run.
    threading.Thread(target=import_module, args=["dfkd_tasks.mlflow_store.publishing"], daemon=True).start()
    if pull:
        dvc_pull()
    reproduce()
    return _deliver(params)


def _deliver(params: Params) -> dict[str, str]:
    """Publish the results in MLflow and copy them to the DVC remote; one is done even if the other fails."""
    pushed = push.submit()
    faults: list[str] = []
    missing: list[str] = []
    made = None
    try:
        made = _published(params)
    except DfkdError as error:
        faults.append(str(error))
        missing.append("registered")
    try:
        pushed.result()
    except DfkdError as error:
        faults.append(str(error))
        missing.append("copied to the remote")
    if made is None or missing:
        raise NotDeliveredError(
            "\n".join(faults) + f"\nThe results are kept, but not {' and not '.join(missing)}. When the service can be "
            "used again, repeat this step with: dfkd publish"
        )
    return {
        "model": made.model,
        "version": made.version,
        "run_id": made.run_id,
        "reason": made.reason,
        "page": made.page,
        "flow_page": flow_page(str(flow_run.id)),
    }


def _published(params: Params) -> Publication:
    check_store(params.registry.experiment)
    from dfkd_flows.run.publishing import publish

    try:
        return publish(params)
    except Exception as error:
        if isinstance(error, DfkdError) or not is_foreign(error):
            raise
        raise DfkdError(f"MLflow, {described_store()}: {reason(error)}") from error
