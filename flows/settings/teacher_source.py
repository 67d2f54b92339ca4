"""The options that name a teacher, a student and a data set, as changes of params.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["dataset_assignment", "source_assignments"]

_PLACED = ("folder", "file")


def source_assignments(
    *, here: Path, teacher: str | None, weights: str | None, student: str | None, trust_pickle: bool
) -> list[str]:
    """Return the options as changes of params.yaml.

    A named teacher resets all settings of the one before. Paths are relative to the project for files in it.

    Args:
        here: Folder in which the command was called and from which paths start; the current folder is the project.
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
    return [_assignment(path, value) for path, value in changes.items()]


def dataset_assignment(name: str, *, here: Path) -> str:
    """Return `--dataset` as a change of params.yaml; `here` as in `source_assignments`."""
    kind, separator, place = name.partition(":")
    return _assignment("data.dataset", f"{kind}:{_placed(place, here)}" if separator and kind in _PLACED else name)


def _assignment(path: str, value: Any) -> str:
    # JSON is YAML, and its quotes keep YAML from reading a text as another type.
    return f"{path}={json.dumps(value)}"


def _placed(text: str, here: Path) -> str:
    path = here / text
    if not path.exists():
        return text
    path = path.resolve()
    project = Path.cwd().resolve()
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else path.as_posix()
