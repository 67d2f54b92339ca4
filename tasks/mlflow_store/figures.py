"""Parameters and figures of a run in MLflow, so that they are found where users look and by filters."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, Param
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.mlflow_store.inputs import Images

__all__ = ["NOT_FINITE_TAG", "epoch_metrics", "log_figures", "make_metrics"]

NOT_FINITE_TAG = "dfkd.not_finite"
"""Tag of a run with the names of its figures that are NaN or infinite."""


def log_figures(run_id: str, metrics: Sequence[Metric], params: Mapping[str, Any]) -> None:
    """Log any number of figures and parameters in as few calls as MLflow allows.

    A figure that is NaN or infinite is not logged, but named in a tag: MLflow's filters would miss it or take it for
    another number. A parameter that MLflow would cut is a file in `parameters/` of the run, which its value names.

    Args:
        run_id: The run.
        metrics: Figures; those with a `model_id` are also logged on that model.
        params: Parameters by name.
    """
    client = mlflow.MlflowClient()
    finite = [metric for metric in metrics if math.isfinite(metric.value)]
    for start in range(0, len(finite), MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=finite[start : start + MAX_METRICS_PER_BATCH])
    if others := sorted({metric.key for metric in metrics} - {metric.key for metric in finite}):
        client.set_tag(run_id, NOT_FINITE_TAG, ", ".join(others))
    entries = [Param(name, _fitting(run_id, name, str(value))) for name, value in params.items()]
    for start in range(0, len(entries), MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + MAX_PARAMS_TAGS_PER_BATCH])


def _fitting(run_id: str, name: str, text: str) -> str:
    """Return a parameter's value, or the name of the file with it if MLflow would cut it."""
    if len(text) <= MAX_PARAM_VAL_LENGTH:
        return text
    file = f"parameters/{name}.txt"
    mlflow.MlflowClient().log_text(run_id, text, file)
    return f"{len(text)} characters, see the run's file {file}"


def make_metrics(
    values: Mapping[str, float], *, step: int = 0, model_id: str | None = None, images: Images | None = None
) -> list[Metric]:
    """Return figures for `log_figures`.

    Args:
        values: Figures by name.
        step: The epoch, 0 for a single figure.
        model_id: The logged model that they are also of.
        images: The input of the run that they were measured on.
    """
    now = int(1000 * time.time())
    data = {"dataset_name": images.name, "dataset_digest": images.digest} if images else {}
    return [Metric(name, float(value), now, step, model_id=model_id, **data) for name, value in values.items()]


def epoch_metrics(teacher: TeacherFiles, student: StudentFiles, model_id: str | None = None) -> list[Metric]:
    """Return the figures of each epoch of both trainings, from their reports.

    Raises:
        DfkdError: A table is missing or damaged.
    """
    logged = []
    for model, files in (("teacher", teacher), ("student", student)):
        path = files.reports / "epochs.csv"
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    step = int(row.pop("epoch"))
                    values = {f"{model}_training.{name}": float(value) for name, value in row.items()}
                    logged += make_metrics(values, step=step, model_id=model_id)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise DfkdError(f"{path} cannot be read: {error}. Make it again with: dfkd run") from error
    return logged
