"""The options that name a teacher, a student and a data set, as changes of params.yaml."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd_core.errors import ConfigError
from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.settings.overrides import place
from dfkd_flows.settings.params import Params

__all__ = ["as_assignments", "dataset_change", "placed_assignments", "source_changes"]

_SOURCE = "teacher.source"
_PLACED = ("folder", "file")


def source_changes(
    *, here: Path, teacher: str | None, weights: str | None, student: str | None, trust_pickle: bool
) -> dict[str, Any]:
    """Return the options as changes of the base sections, by dotted path.

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
        changes[_SOURCE] = source
        changes["teacher.layer"] = ""
    else:
        if weights:
            changes[f"{_SOURCE}.weights"] = _placed(weights, here)
        if trust_pickle:
            changes[f"{_SOURCE}.trust_pickle"] = True
    if student:
        changes["distillation.student"] = student
    return changes


def dataset_change(name: str, *, here: Path) -> dict[str, Any]:
    """Return `--dataset` as a change of the base sections; `here` as in `source_changes`."""
    kind, separator, place = name.partition(":")
    return {"data.dataset": f"{kind}:{_placed(place, here)}" if separator and kind in _PLACED else name}


def placed_assignments(changes: Mapping[str, Any], params: Params, students: Sequence[str] = ()) -> list[str]:
    """Return the changes as values of `--set`, placed where the students' settings are changed.

    Args:
        changes: Result of `source_changes`.
        params: The project's parameters.
        students: Names of the students; all if there are none.

    Raises:
        ConfigError: There is no such student, or the students do not share the place.
    """
    names = [params.the_student(name) for name in students or params.students]
    placed = {}
    for path, value in changes.items():
        places = {place(path, params, name) for name in names}
        if len(places) > 1:
            raise ConfigError(
                f"--teacher, --weights and --student change one student, and there are {', '.join(names)}. "
                "Name one: dfkd run NAME ..."
            )
        (own,) = places
        # In the changes of a teacher, the source of the base sections would shine through.
        placed[own] = {**_defaults(params.teacher.source), **value} if path == _SOURCE != own else value
    return as_assignments(placed)


def as_assignments(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as values of `--set`."""
    # JSON is YAML, and its quotes keep YAML from reading a text as another type.
    return [f"{path}={json.dumps(value)}" for path, value in changes.items()]


def _defaults(source: SourceConfig) -> dict[str, Any]:
    """Return the defaults of the settings that a source has changed."""
    default = dataclasses.asdict(SourceConfig())
    return {name: default[name] for name, value in dataclasses.asdict(source).items() if value != default[name]}


def _placed(text: str, here: Path) -> str:
    path = here / text
    if not path.exists():
        return text
    path = path.resolve()
    project = Path.cwd().resolve()
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else path.as_posix()
