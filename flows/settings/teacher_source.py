"""The options that name a teacher and a student, and the digest that tells when a teacher's files have changed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from dfkd_core.teachers.loading import source_digest
from dfkd_core.teachers.source import SourceConfig
from flows.settings.overrides import Change, write_params
from flows.settings.params import Params
from tasks.mlflow_store.registry import local_source

__all__ = ["note_source", "source_assignments"]


def source_assignments(
    *, here: Path, teacher: str | None, weights: str | None, student: str | None, trust_pickle: bool
) -> list[str]:
    """Return the changes of params.yaml that the options stand for.

    A teacher that is named replaces all that is said about the one before. Files are named relative to the project if
    they lie in it.

    Args:
        here: Folder in which the command was called, which relative paths start from; the current one is the project's.
        teacher: `--teacher`.
        weights: `--weights`.
        student: `--student`.
        trust_pickle: `--trust-pickle`.
    """
    changes: dict[str, Any] = {}
    if teacher:
        source: dict[str, Any] = {"model": _placed(teacher, here)}
        if weights:
            source["weights"] = _placed(weights, here)
        if trust_pickle:
            source["trust_pickle"] = True
        changes["teacher.source"] = source
        changes["teacher.layer"] = ""
    else:
        if weights:
            changes["teacher.source.weights"] = _placed(weights, here)
        if trust_pickle:
            changes["teacher.source.trust_pickle"] = True
    if student:
        changes["distillation.student"] = student
    # JSON is YAML, and quotes what YAML would read as something else.
    return [f"{path}={json.dumps(value)}" for path, value in changes.items()]


def _placed(text: str, here: Path) -> str:
    path = here / text
    if not path.exists():
        return text
    path = path.resolve()
    project = Path.cwd().resolve()
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else path.as_posix()


def note_source(params: Params) -> list[Change]:
    """Write into params.yaml the digest of the files that the teacher is read from, if it has changed.

    Without it DVC would not see that a file outside of the project is another one.
    """
    source: SourceConfig = params.teacher.source
    if not source.model:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        found = source_digest(local_source(source, Path(scratch)))
    if found == source.sha256:
        return []
    change = Change("teacher.source.sha256", source.sha256, found)
    write_params([change])
    return [change]
