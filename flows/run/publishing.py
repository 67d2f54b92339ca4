"""Log a finished run in MLflow, register its student and decide on its promotion, once per result."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from dfkd_core.common.digests import file_sha256, json_digest, write_json
from dfkd_core.data.datasets import NO_DATA
from dfkd_core.evaluation.predictions import read_predictions
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_flows.registry.promotion import continued, decide_and_record
from dfkd_flows.run.table import PUBLISHED, read_latency, read_metrics
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.settings.trust import allow
from dfkd_flows.stages.command import STAGES
from dfkd_tasks.caching.stored import read_note
from dfkd_tasks.caching.workspace import PREDICTIONS, STUDENT, TRANSFER_SET
from dfkd_tasks.dvc_project.status import LOCK, git_commit, results_digest
from dfkd_tasks.mlflow_store.addresses import publication_place
from dfkd_tasks.mlflow_store.aliases import IMAGES_TAG
from dfkd_tasks.mlflow_store.publishing import (
    Publication,
    discard_unfinished,
    find_publication,
    find_run,
    log_run,
    one_publication,
    open_store,
    page_of,
    register_student,
)
from dfkd_tasks.records.timing import stage_seconds

__all__ = ["model_name", "note_champion", "publish", "registered_name"]

# Of a path; names of models have at most 256 characters.
_LONGEST_DATA = 100


def publish(params: Params) -> Publication:
    """Publish the current results once: find their publication, continue it if it was interrupted, or make it.

    Call it within a flow.
    """
    allow(params, ())
    results = results_digest()
    with one_publication():
        experiment = open_store(params.registry.experiment)
        discard_unfinished()
        found = find_publication(results)
        made = continued(found) if found else _publish(params, experiment, results)
        made = dataclasses.replace(made, page=page_of(made.run_id))
        write_json(PUBLISHED, {"results_sha256": results, **dataclasses.asdict(made), "store": publication_place()})
    return made


def _publish(params: Params, experiment: str, results: str) -> Publication:
    tags = _lineage(results)
    found = read_metrics()
    metrics = _figures(found)
    run_id, model_uri = find_run(results) or log_run(experiment, flatten(params), {**metrics, **_times()}, tags)
    name = model_name(params, tags["dfkd.teacher_digest"])
    version = register_student(run_id, model_uri, name, tags)
    return decide_and_record(params, name, version, {**metrics, **_times()}, notes=found.get("notes", []))


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in metrics.json by dotted name."""
    return {name: float(value) for name, value in flatten(metrics).items() if isinstance(value, int | float)}


def registered_name(params: Params) -> str:
    """Return the name under which the project's student is or will be registered.

    Raises:
        DfkdError: It depends on the teacher, and nothing was made with it yet.
    """
    digest = read_manifest(TRANSFER_SET).teacher_digest if params.data.dataset == NO_DATA else ""
    return model_name(params, digest)


def note_champion(model: str, number: str) -> None:
    """Correct the note of the last publication after the alias `champion` was moved to another version."""
    noted = read_note(PUBLISHED, dict[str, Any])
    if noted and noted.get("model") == model:
        write_json(PUBLISHED, {**noted, "promoted": noted.get("version") == number})


def model_name(params: Params, teacher_digest: str) -> str:
    """Return the name under which comparable students are registered: those evaluated on the same data.

    Agreement on synthetic images is comparable only for students of one teacher, so the teacher is part of that name.
    """
    dataset = params.data.dataset
    data = f"proxy-{teacher_digest[:8]}" if dataset == NO_DATA else re.sub("[^A-Za-z0-9.]+", "-", dataset).strip("-")
    if len(data) > _LONGEST_DATA:
        data = f"{json_digest(data)[:8]}-{data[-_LONGEST_DATA:].strip('-')}"
    return f"{params.registry.model_name}-{data}"


def _lineage(results: str) -> dict[str, str]:
    manifest = read_manifest(TRANSFER_SET)
    return {
        "dfkd.git_commit": git_commit(),
        "dfkd.lock_sha256": file_sha256(LOCK),
        "dfkd.results_sha256": results,
        "dfkd.teacher_digest": manifest.teacher_digest,
        "dfkd.transfer_set_sha256": file_sha256(TRANSFER_SET / "manifest.json"),
        "dfkd.student_sha256": file_sha256(STUDENT / "model.safetensors"),
        IMAGES_TAG: read_predictions(PREDICTIONS).images_sha256,
    }


def _times() -> dict[str, float]:
    """Return the measured seconds per stage and milliseconds per batch."""
    measured = {name: stage_seconds(name) for name in STAGES}
    times = {f"seconds.{name}": found[0] for name, found in measured.items() if found}
    return times | {f"latency.{name}": value for name, value in flatten(read_latency()).items()}
