"""Figures of a registered student on other images, as an MLflow run of their own."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow

from dfkd_tasks.mlflow_store.aliases import Version

__all__ = ["log_reevaluation"]


def log_reevaluation(experiment_id: str, version: Version, dataset: str, figures: Mapping[str, float]) -> str:
    """Log figures and return the id of the run, which names the version and the images."""
    tags = {"dfkd.reevaluated_model": version.model, "dfkd.reevaluated_version": version.number}
    name = f"reevaluation of {version.model} {version.number}"
    with mlflow.start_run(experiment_id=experiment_id, run_name=name, tags=tags) as run:
        mlflow.log_param("data.dataset", dataset)
        mlflow.log_metrics({f"student.{name}": value for name, value in figures.items()})
    return str(run.info.run_id)
