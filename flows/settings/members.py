"""The named teachers and students of a project: their changes of the base sections, as plain nested mappings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from dfkd_flows.settings.hints import setting_hint, setting_paths

__all__ = [
    "DEFAULT",
    "GROUPS",
    "STUDENT_SECTIONS",
    "TEACHER",
    "TEACHER_SECTIONS",
    "flat_changes",
    "member_faults",
    "merged",
    "name_fault",
    "typed_changes",
]

T = TypeVar("T")

DEFAULT = "default"
"""Name of the teacher and of the student in a project with one of each."""
TEACHER = "teacher"
"""Key of a student with the name of its teacher."""
TEACHER_SECTIONS = ("data", "teacher", "statistics", "synthesis")
"""Sections that a teacher may change."""
STUDENT_SECTIONS = ("distillation", "evaluation", "registry")
"""Sections that a student may change."""
GROUPS = {"teachers": TEACHER_SECTIONS, "students": STUDENT_SECTIONS}
"""The two sections of named members, with the sections that a member may change."""

# A name is part of paths, of names in DVC and MLflow, and of commands; YAML reads a number as no text.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


def name_fault(name: str) -> str:
    """Return why `name` is no name of a teacher or a student; empty if it is one."""
    if _NAME.fullmatch(name):
        return ""
    return f"a name must be 1 to 32 letters, digits, '_' and '-', and begin with a letter, got {name[:80]!r}"


def member_faults(group: str, members: Any, sections: Any) -> Iterator[str]:
    """Yield faults in the form of `teachers` or `students`; the values of their sections are checked elsewhere.

    Args:
        group: A key of `GROUPS`.
        members: Content of that section in params.yaml.
        sections: Shows which settings there are, for hints.
    """
    one = group.removesuffix("s")
    if not isinstance(members, Mapping):
        example = f"{{{DEFAULT}: {_example(group)}}}"
        yield f"{group}: should be names with their changes, for example {example}, got {members!r}"
        return
    seen: dict[str, str] = {}
    for name, changes in members.items():
        if fault := name_fault(name):
            yield f"{group}: {fault}"
        elif (other := seen.setdefault(name.lower(), name)) != name:
            # They would share a folder where a file system ignores the case.
            yield f"{group}: the names {other} and {name} differ only in upper and lower case. Rename one"
        elif changes is not None and not isinstance(changes, Mapping):
            yield f"{group}.{name}: should be sections with keys and values, got {changes!r}"
        else:
            for fault in _section_faults(one, f"{group}.{name}.", changes or {}, sections):
                yield f"{group}.{name}.{fault}"


def _example(group: str) -> str:
    return "{}" if group == "teachers" else f"{{{TEACHER}: {DEFAULT}}}"


def _section_faults(one: str, prefix: str, changes: Mapping[str, Any], sections: Any) -> Iterator[str]:
    for section, values in changes.items():
        if one == "student" and section == TEACHER:
            if not isinstance(values, str):
                its = "; its settings are changed at teachers.NAME" if isinstance(values, Mapping) else ""
                yield f"{TEACHER}: should be the name of a teacher, got {values!r}{its}"
        elif section not in GROUPS[f"{one}s"]:
            yield f"{section}: unknown key; {_hint(one, prefix, section, sections)}"
        elif values is not None and not isinstance(values, Mapping):
            yield f"{section}: should be a section, that is keys with values, got {values!r}"


def _hint(one: str, prefix: str, key: str, sections: Any) -> str:
    """Return a hint at what was meant by an unknown key of a teacher or a student, also if it is set elsewhere."""
    own, known = GROUPS[f"{one}s"], list(setting_paths(sections))
    mine = [TEACHER] * (one == "student") + [path for path in known if path.partition(".")[0] in own]
    same = [path for path in known if path.rpartition(".")[2] == key]
    allowed = f"a {one} may change {', '.join(own)}"
    if same and not {*same} & {*mine}:
        return f"{allowed}; did you mean {' or '.join(map(_place, same))}?"
    return setting_hint(key, mine, prefix=prefix, otherwise=allowed)


def _place(path: str) -> str:
    """Return where a setting is changed: for a teacher, a student or all."""
    group = next((group for group, names in GROUPS.items() if path.partition(".")[0] in names), "")
    return f"{group}.NAME.{path}" if group else path


def merged(section: T, changes: Mapping[str, Any]) -> T:
    """Return a section with changed values, also in the sections within it.

    Raises:
        ConfigError: The values contradict each other or those that stay.
    """
    new = {
        name: merged(old, value) if _is_section(old := getattr(section, name)) and isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(section, **new) if new else section  # type: ignore[type-var]  # a section


def typed_changes(changes: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """Return the changes with the values that a section has after them, whose types are right."""
    return {
        name: typed_changes(value or {}, found) if _is_section(found := getattr(section, name)) else found
        for name, value in changes.items()
    }


def flat_changes(changes: Mapping[str, Any], section: Any, prefix: str) -> dict[str, Any]:
    """Return the changed values by dotted path; without any, the empty mapping at `prefix`.

    Args:
        changes: Changes of `section`.
        section: Shows which mappings are sections and which are values.
        prefix: Path of the changes.
    """
    leaves: dict[str, Any] = {}
    for name, value in changes.items():
        inner = getattr(section, name)
        nested = _is_section(inner) and isinstance(value, Mapping)
        leaves |= flat_changes(value, inner, f"{prefix}.{name}") if nested else {f"{prefix}.{name}": value}
    return leaves or {prefix: {}}


def _is_section(value: Any) -> bool:
    return dataclasses.is_dataclass(value)
