"""The whole pipeline: settle the parameters, reproduce with DVC, push to the remote, publish in MLflow."""

from __future__ import annotations

import threading
from importlib import import_module

from prefect import flow

from dfkd_core.errors import DfkdError
from dfkd_flows.run.ready import check_ready
from dfkd_flows.session.environment import enter_project, prepare_environment
from dfkd_flows.session.one_run import only_run
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.settling import planned, settle
from dfkd_flows.stages.caching import FLOW_OPTIONS
from dfkd_tasks.dvc_project.versioning import pull as dvc_pull
from dfkd_tasks.dvc_project.versioning import push, reproduce

__all__ = ["NotPushedError", "pipeline", "settled_pipeline"]

_PUSH_LATER = "The results are made and registered, but not copied to the remote. Copy them with: dvc push --run-cache"


class NotPushedError(DfkdError):
    """The results are made and registered, but not copied to the DVC remote."""


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


def _run(params: Params, *, pull: bool) -> dict[str, str]:
    # MLflow takes seconds to import, during which the stages already run.
    threading.Thread(target=import_module, args=["dfkd_tasks.mlflow_store.publishing"], daemon=True).start()
    if pull:
        dvc_pull()
    reproduce()
    pushed = push.submit()
    from dfkd_flows.run.publishing import publish

    made = publish(params)
    try:
        pushed.result()
    except DfkdError as error:
        raise NotPushedError(f"{error}\n{_PUSH_LATER}") from error
    return {"model": made.model, "version": made.version, "run_id": made.run_id, "reason": made.reason}
