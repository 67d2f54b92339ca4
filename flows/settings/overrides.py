"""Presets, `--set` and the editing of params.yaml, which keeps the comments."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_core.common.digests import write_atomically
from dfkd_core.errors import ConfigError
from dfkd_flows.settings.hints import closest
from dfkd_flows.settings.members import GROUPS
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import PARAMS_FILE, flatten, parse_params
from dfkd_flows.settings.yaml_edit import edit_yaml
from dfkd_flows.settings.yaml_text import parse_yaml, read_yaml, value_text

__all__ = [
    "Change",
    "apply_overrides",
    "apply_preset",
    "changes_between",
    "place",
    "preset_names",
    "with_values",
    "write_params",
]

PRESETS = Path(__file__).parent.parent / "project" / "presets"


@dataclass(frozen=True, slots=True)
class Change:
    """One changed value."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}"


def preset_names() -> list[str]:
    """Return the names of the shipped presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def apply_preset(name: str) -> Params:
    """Return the defaults with the changes of the preset `name`.

    Raises:
        ConfigError: There is no such preset, or it has faults.
    """
    if name not in preset_names():
        raise ConfigError(f"No preset {name!r}. Presets: {', '.join(preset_names())}")
    path = PRESETS / f"{name}.yaml"
    return parse_params(read_yaml(path), source=f"the preset {name}")


def apply_overrides(params: Params, assignments: Sequence[str]) -> Params:
    """Return `params` with the changes of assignments like `synthesis.num_images=2000`.

    A path like `teachers.NAME.synthesis.num_images` changes one teacher; `teachers.NAME={}` adds one.

    Raises:
        ConfigError: An assignment has no `=`, names an unknown key or a key again, or sets a value that is not allowed.
    """
    given: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set takes KEY=VALUE, for example synthesis.num_images=2000, got {assignment!r}")
        value = _value(text, assignment)
        _check_new(path, value, given)
        _check_member(path, params, given)
        given[path] = value
    return with_values(params, given)


def with_values(params: Params, values: Mapping[str, Any], *, source: str = "--set") -> Params:
    """Return `params` with new values by dotted path, in their order.

    Raises:
        ConfigError: A key is unknown, or a value is not allowed; the message names `source`.
    """
    if not values:
        return params
    content = _nested(flatten(params))
    content.setdefault("students", {})
    for path, value in values.items():
        _set(content, path, value)
    return parse_params(content, source=source)


def _check_member(path: str, params: Params, given: Mapping[str, Any]) -> None:
    """Refuse to change a teacher or a student that is not there; a whole one is added."""
    group, *rest = path.split(".")
    if group not in GROUPS or len(rest) < 2:
        return
    name, present = rest[0], getattr(params, group)
    if name not in present and f"{group}.{name}" not in given and group not in given:
        content = "{}" if group == "teachers" else f"'{{teacher: {next(iter(params.teachers))}}}'"
        raise ConfigError(
            f"No {group.removesuffix('s')} {name!r} in this project; {closest(name, present)} "
            f"Add one with: --set {group}.{name}={content}"
        )


def place(path: str, params: Params, student: str) -> str:
    """Return the dotted path at which a setting of one student is changed: in the base sections if it is the only one.

    Args:
        path: Path in the base sections, like `synthesis.num_images`.
        params: The project's parameters.
        student: Name of the student; with a path in a teacher's sections, the change is made for its teacher.
    """
    members = {"students": student, "teachers": params.teacher_of(student)}
    section = path.partition(".")[0]
    for group, name in members.items():
        own = f"{group}.{name}.{path}"
        if section in GROUPS[group] and (len(getattr(params, group)) > 1 or _is_set(own, params)):
            return own
    return path


def _is_set(path: str, params: Params) -> bool:
    """Return whether a teacher or a student sets the value at `path`, or a value in that section."""
    return any(f"{leaf}.".startswith(f"{path}.") for leaf in flatten(params))


def _check_new(path: str, value: Any, given: Mapping[str, Any]) -> None:
    """Refuse a value that would silently replace an earlier one, unless that only emptied a setting."""
    for earlier, old in given.items():
        if f"{earlier}.".startswith(f"{path}.") and old not in ("", value):
            also = "" if earlier == path else f", which holds {earlier}"
            raise ConfigError(f"{path} is set twice{also}: first {earlier}={old}, then {path}={value}. Leave one out")


def changes_between(current: Params, wanted: Params) -> list[Change]:
    """Return the values that differ. A teacher or a student that lost a value is one change."""
    before, after = flatten(current), flatten(wanted)
    whole = sorted(set(filter(None, (_shrunk(path, wanted) for path in before.keys() - after.keys()))))
    changes = [Change(path, _member(path, current), _member(path, wanted)) for path in whole]
    for path, value in after.items():
        if before.get(path) != value and not any(path.startswith(f"{root}.") for root in whole):
            changes.append(Change(path, before.get(path), value))
    return changes


def _shrunk(path: str, wanted: Params) -> str:
    """Return the teacher or student that lost the value at `path`, the group if it is gone; empty if it only grew."""
    group, name, *rest = path.split(".")
    if name not in getattr(wanted, group):
        return group
    # An empty one has no value to lose.
    return f"{group}.{name}" if rest else ""


def _member(path: str, params: Params) -> Any:
    group, *name = path.split(".")
    found = getattr(params, group)
    return found[name[0]] if name else found


def write_params(changes: Sequence[Change], path: Path = PARAMS_FILE) -> None:
    """Write changed values into a parameter file in one step; everything else in it stays as it is.

    Raises:
        ConfigError: The file cannot be written, or its form allows no change by a program; it is then as it was.
    """
    # A link stays one.
    target = path.resolve()
    try:
        raw = target.read_bytes()
        mark = codecs.BOM_UTF8 if raw.startswith(codecs.BOM_UTF8) else b""
        edited = mark + _edited(raw.removeprefix(mark).decode(), changes, path).encode()
        with write_atomically(target) as temporary:
            temporary.write_bytes(edited)
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}") from None


def _edited(text: str, changes: Sequence[Change], path: Path) -> str:
    """Return the text with changed values.

    Raises:
        ConfigError: Other values would change too, for example those of an alias.
    """
    # Keys on lines of their own get the ends that the other lines have.
    unix = text.replace("\r\n", "\n")
    values = {change.path: change.new for change in changes}
    wanted = with_values(parse_params(parse_yaml(unix), source=str(path)), values, source=str(path))
    edited = edit_yaml(unix, values)
    try:
        found = parse_params(parse_yaml(edited), source=str(path))
    except ConfigError:
        found = None
    if found != wanted:
        settings = ", ".join(f"{name}={value_text(value)}" for name, value in values.items())
        raise ConfigError(
            f"{path} has a form in which dfkd cannot change single values, such as aliases. Set this in it by hand: "
            f"{settings}"
        )
    return edited.replace("\n", "\r\n") if "\r\n" in text else edited


def _value(text: str, assignment: str) -> Any:
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"The value in --set {assignment[:80]!r} is not YAML, {error}") from None


def _set(content: Any, path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    content[name] = value


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for path, value in leaves.items():
        _set(content, path, dict(value) if isinstance(value, Mapping) else value)
    return content
