"""Log a finished run in MLflow, register its student and decide on its promotion, once per result."""

from __future__ import annotations

import dataclasses
import json
import re

from dfkd_core.common.digests import file_sha256, write_json
from dfkd_core.data.datasets import NO_DATA
from dfkd_core.transfer_set.manifest import read_manifest
from flows.run.promotion import decide_promotion
from flows.run.table import PUBLISHED, read_latency
from flows.settings.params import Params
from flows.settings.parsing import flatten
from flows.stages.command import STAGES
from tasks.caching.workspace import METRICS, STUDENT, TRANSFER_SET
from tasks.dvc_project.status import LOCK, git_commit, results_digest
from tasks.mlflow_store.publishing import (
    Publication,
    champion_metrics,
    find_publication,
    log_run,
    open_store,
    register_student,
    set_alias,
)
from tasks.records.timing import stage_seconds

__all__ = ["model_name", "publish"]


def publish(params: Params) -> Publication:
    """Publish the current results, or find their publication. Call it within a flow."""
    results = results_digest()
    experiment = open_store(params.registry.experiment)
    made = find_publication(experiment, results) or _publish_new(params, experiment, results)
    write_json(PUBLISHED, {"results_sha256": results, **dataclasses.asdict(made)})
    return made


def _publish_new(params: Params, experiment: str, results: str) -> Publication:
    tags = _lineage(results)
    metrics = flatten(json.loads(METRICS.read_text(encoding="utf-8")))
    notes = metrics.pop("notes", [])
    run_id, model_uri = log_run(experiment, flatten(params), {**metrics, **_times()}, tags)
    name = model_name(params, tags["dfkd.teacher_digest"])
    champion = champion_metrics(name)
    version = register_student(run_id, model_uri, name, {**tags, "dfkd.run_id": run_id})
    promotion = decide_promotion(metrics, champion, params.registry)
    reason = ". ".join([promotion.reason, *notes])
    made = Publication(run_id=run_id, model=name, version=version, promoted=promotion.promote, reason=reason)
    set_alias(made)
    return made


def model_name(params: Params, teacher_digest: str) -> str:
    """Return the name under which comparable students are registered: those evaluated on the same data.

    Agreement on synthetic images is comparable only for students of one teacher, so the teacher is part of that name.
    """
    dataset = params.data.dataset
    data = f"proxy-{teacher_digest[:8]}" if dataset == NO_DATA else re.sub("[^A-Za-z0-9.]+", "-", dataset).strip("-")
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
    }


def _times() -> dict[str, float]:
    """Return the measured seconds per stage and milliseconds per batch."""
    measured = {name: stage_seconds(name) for name in STAGES}
    times = {f"seconds.{name}": found[0] for name, found in measured.items() if found}
    return times | {f"latency.{name}": value for name, value in flatten(read_latency()).items()}
