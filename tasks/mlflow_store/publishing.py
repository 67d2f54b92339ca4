"""MLflow as tasks: one run per pipeline run, a registered student, aliases."""

from __future__ import annotations

import csv
import io
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.pytorch
import torch
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.models.model import MLMODEL_FILE_NAME, MODEL_CONFIG
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH
from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.common.pixels import grey_images
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import load_model
from tasks.caching.trust import trusted_factories
from tasks.caching.workspace import REPORTS, STORE, STUDENT, TRANSFER_SET

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Publication",
    "champion_metrics",
    "find_publication",
    "log_figures",
    "log_run",
    "log_student",
    "open_store",
    "register_student",
    "set_alias",
]

ARTIFACTS = Path("mlartifacts")
CHALLENGER = "challenger"
CHAMPION = "champion"
RESULTS_TAG = "dfkd.results_sha256"
DONE_TAG = "dfkd.published"

_NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Address of a published student in MLflow, and the decision on its promotion."""

    run_id: str
    model: str
    version: str
    promoted: bool
    """Whether it became the champion."""
    reason: str
    """Reason of the decision."""


def open_store(experiment: str) -> str:
    """Set MLflow's store to the project's SQLite file, create the experiment if it is missing, and return its id."""
    mlflow.set_tracking_uri(f"sqlite:///{STORE.resolve()}")
    found = mlflow.get_experiment_by_name(experiment)
    if found:
        return str(found.experiment_id)
    return mlflow.create_experiment(experiment, artifact_location=(ARTIFACTS.resolve() / experiment).as_uri())


@task(name="find run", cache_policy=NO_CACHE)
def find_publication(experiment_id: str, results_sha256: str) -> Publication | None:
    """Return the earlier publication of the same results, None if there is none."""
    query = f"tags.`{RESULTS_TAG}` = '{results_sha256}' and tags.`{DONE_TAG}` = 'true'"
    runs = mlflow.search_runs([experiment_id], query, max_results=1, output_format="list")
    if not runs:
        return None
    tags = runs[0].data.tags
    return Publication(
        run_id=runs[0].info.run_id,
        model=tags["dfkd.model"],
        version=tags["dfkd.model_version"],
        promoted=tags["dfkd.promoted"] == "true",
        reason=tags["dfkd.promotion_reason"],
    )


@task(name="log run", cache_policy=NO_CACHE)
def log_run(
    experiment_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]
) -> tuple[str, str]:
    """Log parameters, figures, reports and the student; return the ids of the run and of its model."""
    with mlflow.start_run(experiment_id=experiment_id, tags=dict(tags)) as run:
        log_figures(run.info.run_id, [*_epochs(), *_metrics(metrics)], params)
        _log_files()
        model_uri = log_student(load_model(STUDENT, trusted_factories=trusted_factories(STUDENT)))
    return run.info.run_id, model_uri


@task(name="register student", cache_policy=NO_CACHE)
def register_student(run_id: str, model_uri: str, name: str, tags: Mapping[str, str]) -> str:
    """Register the student as a new version with the alias `challenger` and return the version."""
    # MLflow reports success on stderr, which only confuses.
    with redirect_stderr(io.StringIO()):
        made = mlflow.register_model(model_uri, name, tags=dict(tags))
    mlflow.MlflowClient().set_registered_model_alias(name, CHALLENGER, made.version)
    return str(made.version)


@task(name="read champion", cache_policy=NO_CACHE)
def champion_metrics(name: str) -> dict[str, float] | None:
    """Return the figures of the champion's run, None if there is no champion."""
    client = mlflow.MlflowClient()
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        # MLflow reports a missing alias as an invalid parameter value.
        if error.error_code in (_NOT_FOUND, "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return dict(client.get_run(champion.tags["dfkd.run_id"]).data.metrics)


@task(name="promote", cache_policy=NO_CACHE)
def set_alias(made: Publication) -> None:
    """Record the decision in the run and the version, and move the alias `champion` after a promotion."""
    client = mlflow.MlflowClient()
    client.set_model_version_tag(made.model, made.version, "dfkd.promotion_reason", made.reason)
    if made.promoted:
        client.set_registered_model_alias(made.model, CHAMPION, made.version)
    tags = {
        "dfkd.model": made.model,
        "dfkd.model_version": made.version,
        "dfkd.promoted": str(made.promoted).lower(),
        "dfkd.promotion_reason": made.reason,
        DONE_TAG: "true",
    }
    client.log_batch(made.run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    now = int(1000 * time.time())
    return [Metric(name, float(value), now, step) for name, value in values.items()]


def log_figures(run_id: str, metrics: Sequence[Metric], params: Mapping[str, Any]) -> None:
    """Log any number of figures and parameters in as few calls as MLflow allows."""
    client = mlflow.MlflowClient()
    for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
    entries = [Param(name, str(value)) for name, value in params.items()]
    for start in range(0, len(entries), MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + MAX_PARAMS_TAGS_PER_BATCH])


def _epochs() -> list[Metric]:
    logged = []
    for model in ("teacher", "student"):
        with (REPORTS / f"{model}_epochs.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                epoch = int(row.pop("epoch"))
                logged += _metrics({f"{model}_training.{name}": float(value) for name, value in row.items()}, epoch)
    return logged


def _log_files() -> None:
    mlflow.log_artifact(str(TRANSFER_SET / "manifest.json"), "transfer_set")
    mlflow.log_artifacts(str(REPORTS), "reports")
    mlflow.log_artifacts(str(STUDENT), "student")


def log_student(student: Classifier) -> str:
    """Log a student as a model of the active run and return the model's address."""
    # With at least two images the exported program takes batches of any size.
    example = grey_images(2, student.card.image_shape)
    with torch.no_grad():
        signature = infer_signature(example.numpy(), student(example).numpy())
    with warnings.catch_warnings():
        # torch.export warns of weights that are not on the CPU; these are on it.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        made = Model.log(
            artifact_path=None,
            name="student",
            flavor=_PYTORCH_ON_CPU,
            pytorch_model=student,
            serialization_format="pt2",
            signature=signature,
            input_example=example.numpy(),
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "torch")],
        )
    return str(made.model_uri)


def _save_for_cpu(path: str, mlflow_model: Model, **options: Any) -> None:
    """Save a model as MLflow does, but for the CPU, even if there is a GPU.

    MLflow loads a model onto a GPU that it finds, and refuses an exported program that was made on another device.
    """
    mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **options)
    mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME][MODEL_CONFIG] = {"device": "cpu"}
    mlflow_model.save(str(Path(path, MLMODEL_FILE_NAME)))


_PYTORCH_ON_CPU = SimpleNamespace(__name__=mlflow.pytorch.__name__, save_model=_save_for_cpu)
