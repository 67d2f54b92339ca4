"""MLflow as tasks: one run per result, a registered student, aliases. An unfinished publication is continued."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelStatus, Run, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.common.digests import json_digest, write_atomically
from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.stored_models import load_allowed_model
from dfkd_tasks.caching.workspace import REPORTS, STATE, STUDENT, TRANSFER_SET
from dfkd_tasks.mlflow_store.addresses import (
    is_own_store,
    is_server,
    new_artifacts,
    registry_uri,
    run_page,
    sqlite_file,
    tracking_uri,
    use_store,
)
from dfkd_tasks.mlflow_store.figures import epoch_metrics, log_figures, make_metrics
from dfkd_tasks.mlflow_store.student import log_student

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "RESULTS_TAG",
    "Champion",
    "Publication",
    "champion_metrics",
    "discard_unfinished",
    "find_publication",
    "find_run",
    "log_run",
    "one_publication",
    "open_store",
    "page_of",
    "register_student",
    "set_alias",
]

CHALLENGER = "challenger"
CHAMPION = "champion"
RESULTS_TAG = "dfkd.results_sha256"
"""Tag of a run and of a version with the digest of the results that they hold."""
DONE_TAG = "dfkd.published"

_RUN_TAG = "dfkd.run_id"
_REASON_TAG = "dfkd.promotion_reason"
_ORIGIN_TAG = "dfkd.origin"
_LOCK = STATE / "publish.lock"
_SECONDS_TO_WAIT = 600
# MLflow reports a missing alias, and an id that is none, as an invalid parameter value.
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_EXISTING = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


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
    page: str = ""
    """Address of the run's page, empty if no server shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The version with the alias `champion`."""

    version: str
    metrics: Mapping[str, float]
    """Figures of its run; empty if they are not known."""
    why_unknown: str = ""
    """Why they are not known."""
    reason: str = ""
    """Reason of its promotion; empty if the alias was set by hand."""


@contextmanager
def one_publication() -> Iterator[None]:
    """Let one process of the project publish at a time; another waits for it.

    Raises:
        DfkdError: The other one takes too long.
    """
    _LOCK.parent.mkdir(exist_ok=True)
    try:
        with FileLock(_LOCK, timeout=_SECONDS_TO_WAIT):
            yield
    except Timeout:
        raise DfkdError(
            f"Another process has been publishing for {_SECONDS_TO_WAIT} s. Wait for it, then: dfkd run"
        ) from None


def open_store(experiment: str) -> str:
    """Set MLflow's address, make or restore the experiment there, and return its id."""
    file = sqlite_file(tracking_uri())
    if file and not file.exists():
        # Whole or not at all: MLflow cannot go on with tables of which a killed process made a part.
        with write_atomically(file) as temporary:
            mlflow.MlflowClient(f"sqlite:///{temporary.resolve()}").search_experiments(max_results=1)
    use_store()
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        return mlflow.create_experiment(experiment, artifact_location=new_artifacts(experiment))
    if found.lifecycle_stage == LifecycleStage.DELETED:
        mlflow.MlflowClient().restore_experiment(found.experiment_id)
    return str(found.experiment_id)


@task(name="find publication", cache_policy=NO_CACHE)
def find_publication(results_sha256: str) -> Publication | None:
    """Return the finished publication of the same results in any experiment, None if there is none."""
    for run in _runs(f"tags.`{RESULTS_TAG}` = '{results_sha256}' and tags.`{DONE_TAG}` = 'true'"):
        tags = run.data.tags
        found = Publication(
            run_id=run.info.run_id,
            model=tags.get("dfkd.model", ""),
            version=tags.get("dfkd.model_version", ""),
            promoted=tags.get("dfkd.promoted") == "true",
            reason=tags.get(_REASON_TAG, "not known"),
        )
        if _version_exists(found.model, found.version):
            return found
    return None


@task(name="discard unfinished runs", cache_policy=NO_CACHE)
def discard_unfinished() -> None:
    """Mark the runs of publications that were killed or failed as failed, and move them into MLflow's bin.

    Their figures or their model may be a part of the whole. Call it within `one_publication`: no other one is at work.
    """
    query = f"attributes.status != 'FINISHED' and tags.`{RESULTS_TAG}` LIKE '%'"
    if not is_own_store():
        # On a server, other projects may be publishing now.
        query += f" and tags.`{_ORIGIN_TAG}` = '{_origin()}'"
    for run in _runs(query):
        _discard(run)


@task(name="find run", cache_policy=NO_CACHE)
def find_run(results_sha256: str) -> tuple[str, str] | None:
    """Return the ids of a whole run of the same results and of its model, None if there is none."""
    for run in _runs(f"attributes.status = 'FINISHED' and tags.`{RESULTS_TAG}` = '{results_sha256}'"):
        for model in _models(run):
            if model.status == LoggedModelStatus.READY:
                return run.info.run_id, str(model.model_uri)
        _discard(run)
    return None


@task(name="log run", cache_policy=NO_CACHE)
def log_run(
    experiment_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]
) -> tuple[str, str]:
    """Log parameters, figures, reports and the student; return the ids of the run and of its model.

    The figures are on the run and on the model. The run is finished when everything is logged.
    """
    with mlflow.start_run(experiment_id=experiment_id, tags={**tags, _ORIGIN_TAG: _origin()}) as run:
        # The model takes over the run's parameters; figures are logged on both afterwards.
        log_figures(run.info.run_id, [], params)
        model_uri = log_student(load_allowed_model(STUDENT))
        model_id = model_uri.removeprefix("models:/")
        log_figures(run.info.run_id, [*epoch_metrics(model_id), *make_metrics(metrics, model_id=model_id)], {})
        _log_files()
    return run.info.run_id, model_uri


@task(name="register student", cache_policy=NO_CACHE)
def register_student(run_id: str, model_uri: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the version of the student, registered unless it was before, with its tags and the alias `challenger`.

    Args:
        run_id: Its run.
        model_uri: Its logged model.
        name: Name of the registered model.
        tags: Tags of the version, with `RESULTS_TAG`.
    """
    client = mlflow.MlflowClient()
    tags = {**tags, _RUN_TAG: run_id}
    made = _find_version(name, run_id, tags[RESULTS_TAG])
    if made is None:
        # MLflow reports success on stderr, which only confuses.
        with redirect_stderr(io.StringIO()):
            made = _register(run_id, model_uri, name, tags)
    for key in tags.keys() - {key for key, value in made.tags.items() if tags.get(key) == value}:
        client.set_model_version_tag(name, made.version, key, tags[key])
    client.set_registered_model_alias(name, CHALLENGER, made.version)
    return str(made.version)


@task(name="read champion", cache_policy=NO_CACHE)
def champion_metrics(name: str) -> Champion | None:
    """Return the champion and the figures of its run as far as they are known, None if there is no champion."""
    client = mlflow.MlflowClient()
    try:
        found = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise
    version, reason = str(found.version), found.tags.get(_REASON_TAG, "")
    run_id = found.tags.get(_RUN_TAG) or found.run_id
    if not run_id:
        return Champion(version=version, metrics={}, why_unknown="it has no run", reason=reason)
    try:
        metrics = dict(client.get_run(run_id).data.metrics)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return Champion(version=version, metrics={}, why_unknown=f"its run {run_id[:8]} is gone", reason=reason)
    return Champion(version=version, metrics=metrics, reason=reason)


@task(name="promote", cache_policy=NO_CACHE)
def set_alias(made: Publication) -> None:
    """Record the decision in the version, move the alias `champion` after a promotion, and mark the run as published.

    The decision is recorded before the alias is moved: afterwards a killed publication could not repeat it.
    """
    client = mlflow.MlflowClient()
    client.set_model_version_tag(made.model, made.version, _REASON_TAG, made.reason)
    if made.promoted:
        client.set_registered_model_alias(made.model, CHAMPION, made.version)
    tags = {
        "dfkd.model": made.model,
        "dfkd.model_version": made.version,
        "dfkd.promoted": str(made.promoted).lower(),
        _REASON_TAG: made.reason,
        DONE_TAG: "true",
    }
    client.log_batch(made.run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def page_of(run_id: str) -> str:
    """Return the address of a run's page if a server shows it, empty otherwise."""
    return run_page(mlflow.get_run(run_id).info.experiment_id, run_id) if is_server(tracking_uri()) else ""


def _runs(query: str) -> list[Run]:
    """Return the runs of all experiments that match a filter, the oldest first."""
    found: list[Run] = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=query,
        run_view_type=ViewType.ACTIVE_ONLY,
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    return found


def _models(run: Run) -> list[LoggedModel]:
    """Return the logged models of a run, whole or not."""
    query = f"source_run_id = '{run.info.run_id}'"
    return list(mlflow.MlflowClient().search_logged_models([run.info.experiment_id], query))


def _discard(run: Run) -> None:
    client = mlflow.MlflowClient()
    for model in _models(run):
        client.delete_logged_model(model.model_id)
    client.set_terminated(run.info.run_id, "FAILED")
    # Without the tag it counts as no publication, also if it is taken out of the bin.
    client.delete_tag(run.info.run_id, RESULTS_TAG)
    client.delete_run(run.info.run_id)


def _version_exists(name: str, version: str) -> bool:
    try:
        mlflow.MlflowClient().get_model_version(name, version)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return False
        raise
    return True


def _find_version(name: str, run_id: str, results_sha256: str) -> ModelVersion | None:
    """Return the oldest version of a model that holds the same results."""
    client = mlflow.MlflowClient()
    found: list[ModelVersion] = []
    for query in (f"tags.`{RESULTS_TAG}` = '{results_sha256}'", f"run_id = '{run_id}'"):
        found += client.search_model_versions(f"name = '{name}' and {query}")
    return min(found, key=lambda version: int(version.version), default=None)


def _register(run_id: str, model_uri: str, name: str, tags: Mapping[str, str]) -> ModelVersion:
    if registry_uri() == tracking_uri():
        return mlflow.register_model(model_uri, name, tags=dict(tags))
    # Another MLflow does not know the model's address, only that of its files.
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _EXISTING:
            raise
    source = client.get_logged_model(model_uri.removeprefix("models:/")).artifact_location
    return client.create_model_version(name, source, run_id=run_id, tags=dict(tags))


def _origin() -> str:
    """Return a name for this folder on this machine."""
    return json_digest([socket.gethostname(), str(Path.cwd())])[:16]


def _log_files() -> None:
    mlflow.log_artifact(str(TRANSFER_SET / "manifest.json"), "transfer_set")
    mlflow.log_artifacts(str(REPORTS), "reports")
    mlflow.log_artifacts(str(STUDENT), "student")
