"""The options that name a teacher and a student, as changes of params.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["source_assignments"]


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
