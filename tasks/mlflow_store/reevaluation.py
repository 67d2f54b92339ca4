"""Figures of a registered student on other images, as an MLflow run of their own."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow

from dfkd_tasks.mlflow_store.aliases import Version
from dfkd_tasks.mlflow_store.inputs import Images, data_input

__all__ = ["log_reevaluation"]


def log_reevaluation(
    experiment_id: str, version: Version, images: Images, figures: Mapping[str, float], tags: Mapping[str, str]
) -> str:
    """Log figures and return the id of the run, which names the version and has the images as its input."""
    own = {"dfkd.reevaluated_model": version.model, "dfkd.reevaluated_version": version.number}
    name = f"reevaluation of {version.model} {version.number}"
    with mlflow.start_run(experiment_id=experiment_id, run_name=name, tags={**tags, **own}) as run:
        mlflow.MlflowClient().log_inputs(run.info.run_id, [data_input(images)])
        mlflow.log_param("data.dataset", images.source)
        mlflow.log_metrics({f"student.{name}": value for name, value in figures.items()})
    return str(run.info.run_id)
