"""Log a finished run in MLflow, register its student and decide on its promotion, once per result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dfkd_core.common.digests import write_json
from dfkd_core.data.datasets import NO_DATA
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_flows.registry.promotion import continued, decide_and_record
from dfkd_flows.run.described import described_result, model_note
from dfkd_flows.run.table import published_note, read_metrics
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.trust import allow
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.stored import read_note
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.dvc_project.status import results_digest
from dfkd_tasks.mlflow_store.addresses import publication_place
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
from dfkd_tasks.mlflow_store.results import Result

__all__ = ["log_only", "note_champion", "publish", "registered_name"]


def publish(params: Params) -> Publication:
    """Publish the current results of a student once: find their publication, continue an interrupted one, or make it.

    Call it within a flow.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    with _store(params) as (experiment, results):
        found = find_publication(results)
        made = continued(found) if found else _publish(params, experiment, results)
        made = dataclasses.replace(made, page=page_of(made.run_id))
        note = {"results_sha256": results, **dataclasses.asdict(made), "store": publication_place()}
        write_json(published_note(params), note)
    return made


def log_only(params: Params) -> str:
    """Log the current results of a student once, without registering it; return the id of its run.

    Call it within a flow. If the results are published later, their run is used.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    with _store(params) as (experiment, results):
        return _log(params, experiment, results).run_id


@contextmanager
def _store(params: Params) -> Iterator[tuple[str, str]]:
    """Open MLflow's store for one publication at a time; yield the experiment's id and the digest of the results."""
    allow(params, ())
    results = results_digest(addresses(params))
    assert results, f"the student {params.student_name} is not made"
    with one_publication():
        experiment = open_store(params.registry.experiment)
        discard_unfinished()
        yield experiment, results


@dataclass(frozen=True, slots=True, kw_only=True)
class _Logged:
    """A result that is in MLflow."""

    run_id: str
    model_uri: str
    result: Result
    remarks: list[str]


def _log(params: Params, experiment: str, results: str) -> _Logged:
    """Log results unless they are logged."""
    found = read_metrics(StudentFiles(params.student_name))
    result = described_result(params, found, results)
    run_id, model_uri = find_run(results) or log_run(experiment, result)
    return _Logged(run_id=run_id, model_uri=model_uri, result=result, remarks=found.get("notes", []))


def _publish(params: Params, experiment: str, results: str) -> Publication:
    made = _log(params, experiment, results)
    name = params.model_name(made.result.lineage["teacher_digest"])
    version = register_student(
        made.run_id,
        made.model_uri,
        name,
        made.result.tags,
        note=made.result.note,
        model_note=model_note(params, name),
    )
    return decide_and_record(params, name, version, made.result.figures, notes=made.remarks)


def registered_name(params: Params) -> str:
    """Return the name under which a student is or will be registered.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: It depends on the teacher, and nothing was made with it yet.
    """
    made = TeacherFiles(params.teacher_name).transfer_set
    return params.model_name(read_manifest(made).teacher_digest if params.data.dataset == NO_DATA else "")


def note_champion(params: Params, model: str, number: str) -> None:
    """Correct the note of the student's last publication after the alias `champion` was moved to another version."""
    path = published_note(params)
    noted = read_note(path, dict[str, Any])
    if noted and noted.get("model") == model:
        write_json(path, {**noted, "promoted": noted.get("version") == number})
