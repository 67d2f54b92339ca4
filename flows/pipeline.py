"""The whole: check, reproduce with DVC, keep in the remote, publish in MLflow."""

from __future__ import annotations

import threading
from importlib import import_module

from prefect import flow

from dfkd_core.data.datasets import ensure_dataset
from flows.session.environment import check_writable, enter_project, prepare_environment
from flows.settings.overrides import settle_params
from flows.settings.parsing import load_params
from flows.settings.teacher_source import note_source
from flows.stages.caching import FLOW_OPTIONS
from tasks.dvc_project.versioning import pull as dvc_pull
from tasks.dvc_project.versioning import push, reproduce

__all__ = ["pipeline"]


@flow(name="pipeline", **FLOW_OPTIONS)
def pipeline(preset: str | None = None, overrides: list[str] | None = None, pull: bool = False) -> dict[str, str]:
    """Run everything that has changed and publish the result.

    Args:
        preset: Preset that params.yaml is set to first.
        overrides: Changes of params.yaml like `synthesis.num_images=2000`, made after it.
        pull: Fetch what the DVC remote has before anything is computed.
    """
    prepare_environment(enter_project())
    params, _ = settle_params(preset, overrides or [])
    params = load_params() if note_source(params) else params
    check_writable()
    ensure_dataset(params.data)
    if params.training_data:
        ensure_dataset(params.training_data, "train")
    # MLflow takes seconds to import, which pass beside the stages.
    threading.Thread(target=import_module, args=["tasks.mlflow_store.publishing"], daemon=True).start()
    if pull:
        dvc_pull()
    reproduce()
    kept = push.submit()
    from flows.run.publishing import publish

    made = publish(params)
    kept.result()
    return {"model": made.model, "version": made.version, "run_id": made.run_id, "reason": made.reason}
