"""MLflow as tasks: one run per result and a registered student. An unfinished publication is continued."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelStatus, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.common.digests import json_digest, write_atomically
from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.workspace import STATE
from dfkd_tasks.mlflow_store.addresses import (
    is_own_store,
    is_own_store_missing,
    new_artifacts,
    pages,
    registry_uri,
    run_page,
    sqlite_file,
    tracking_uri,
    use_store,
)
from dfkd_tasks.mlflow_store.aliases import DECISION_TAG, REASON_TAG, RULES_TAG, RUN_TAG, find_version
from dfkd_tasks.mlflow_store.results import Result, log_content, source_tags

__all__ = [
    "DONE_TAG",
    "MODEL_TAG",
    "RESULTS_TAG",
    "STUDENT_TAG",
    "TEACHER_TAG",
    "VERSION_TAG",
    "Publication",
    "discard_unfinished",
    "find_publication",
    "find_run",
    "log_run",
    "one_publication",
    "open_store",
    "page_of",
    "register_student",
    "stated_rules",
    "use_filled_store",
]

RESULTS_TAG = "dfkd.results_sha256"
"""Tag of a run and of a version with the digest of the results that they hold."""
DONE_TAG = "dfkd.published"
"""Tag of a run whose publication is decided."""
MODEL_TAG = "dfkd.model"
"""Tag of a run with the name of the registered model."""
VERSION_TAG = "dfkd.model_version"
"""Tag of a run with the version of the registered model."""
STUDENT_TAG = "dfkd.student"
"""Tag of a run with the name of its student in the project."""
TEACHER_TAG = "dfkd.teacher"
"""Tag of a run with the name of its teacher in the project."""

_ORIGIN_TAG = "dfkd.origin"
_LOCK = STATE / "publish.lock"
_SECONDS_TO_WAIT = 600
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
    rules: tuple[str, ...] = ()
    """Outcome of every rule of the decision, in words."""
    page: str = ""
    """Address of the run's page, empty if no server shows it."""
    refused: bool = False
    """Whether the rules refused it."""
    broken: tuple[str, ...] = ()
    """Settings of the rules that do not hold."""
    champion: str = ""
    """Version of the champion now; empty if there is none."""
    is_earlier: bool = False
    """Whether an earlier run decided on it."""


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


def use_filled_store() -> None:
    """Set MLflow's address.

    Raises:
        DfkdError: Nothing was registered yet in the project's own store.
    """
    if is_own_store_missing():
        raise DfkdError("No student is registered yet. Make and register one with: dfkd run")
    use_store()


@task(name="find publication", cache_policy=NO_CACHE)
def find_publication(results_sha256: str) -> Publication | None:
    """Return the finished publication of the same results in any experiment, None if there is none."""
    for run in _runs(f"tags.`{RESULTS_TAG}` = '{results_sha256}' and tags.`{DONE_TAG}` = 'true'"):
        tags = run.data.tags
        found = Publication(
            run_id=run.info.run_id,
            model=tags.get(MODEL_TAG, ""),
            version=tags.get(VERSION_TAG, ""),
            promoted=tags.get(DECISION_TAG) == "true",
            reason=tags.get(REASON_TAG, "not known"),
            rules=stated_rules(tags),
            refused=tags.get(DECISION_TAG) == "false",
            broken=tuple(str(rule.get("setting", "")) for rule in _rules(tags) if not rule["holds"]),
            is_earlier=True,
        )
        if find_version(found.model, found.version):
            return found
    return None


def stated_rules(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return the outcome of every rule from the tags of a run or a version, in words; empty if it is not known."""
    return tuple(f"{'' if rule['holds'] else 'broken: '}{rule['text']}" for rule in _rules(tags))


def _rules(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        return [
            {"holds": rule["holds"], "text": rule["text"], **rule} for rule in json.loads(tags.get(RULES_TAG, "[]"))
        ]
    except (ValueError, TypeError, KeyError):
        return []


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
def log_run(experiment_id: str, result: Result) -> tuple[str, str]:
    """Log a result; return the ids of the run and of its model. The run is finished when everything is logged."""
    tags = {**result.tags, **source_tags(result), _ORIGIN_TAG: _origin()}
    with mlflow.start_run(experiment_id=experiment_id, run_name=result.name, description=result.note, tags=tags) as run:
        model_uri = log_content(run.info.run_id, result)
    return run.info.run_id, model_uri


@task(name="register student", cache_policy=NO_CACHE)
def register_student(
    run_id: str, model_uri: str, name: str, tags: Mapping[str, str], *, note: str = "", model_note: str = ""
) -> str:
    """Return the version of the student, registered unless it was before, with its tags.

    Args:
        run_id: Its run.
        model_uri: Its logged model.
        name: Name of the registered model.
        tags: Tags of the version, with `RESULTS_TAG`.
        note: Description of the version. One that it has already stays.
        model_note: Description of the registered model. One that it has already stays.
    """
    client = mlflow.MlflowClient()
    tags = {**tags, RUN_TAG: run_id}
    made = _find_version(name, run_id, tags[RESULTS_TAG])
    if made is None:
        # MLflow reports success on stderr, which only confuses.
        with redirect_stderr(io.StringIO()):
            made = _register(run_id, model_uri, name, tags)
    for key in tags.keys() - {key for key, value in made.tags.items() if tags.get(key) == value}:
        client.set_model_version_tag(name, made.version, key, tags[key])
    if note and not made.description:
        client.update_model_version(name, made.version, note)
    if model_note and not client.get_registered_model(name).description:
        client.update_registered_model(name, model_note)
    return str(made.version)


def page_of(run_id: str) -> str:
    """Return the address of a run's page if a server shows it, empty otherwise."""
    return run_page(mlflow.get_run(run_id).info.experiment_id, run_id) if pages() else ""


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
