"""Presets, `--set` and the editing of params.yaml, which keeps the comments."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_core.common.digests import write_atomically
from dfkd_core.errors import ConfigError
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import PARAMS_FILE, flatten, parse_params
from dfkd_flows.settings.yaml_edit import edit_yaml
from dfkd_flows.settings.yaml_text import parse_yaml, read_yaml, value_text

__all__ = ["Change", "apply_overrides", "apply_preset", "changes_between", "preset_names", "write_params"]

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

    Raises:
        ConfigError: An assignment has no `=`, names an unknown key or a key again, or sets a value that is not allowed.
    """
    content = _nested(flatten(params))
    given: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set takes KEY=VALUE, for example synthesis.num_images=2000, got {assignment!r}")
        value = _value(text, assignment)
        _check_new(path, value, given)
        given[path] = value
        _set(content, path, value)
    return parse_params(content, source="--set") if assignments else params


def _check_new(path: str, value: Any, given: Mapping[str, Any]) -> None:
    """Refuse a value that would silently replace an earlier one, unless that only emptied a setting."""
    for earlier, old in given.items():
        if f"{earlier}.".startswith(f"{path}.") and old not in ("", value):
            also = "" if earlier == path else f", which holds {earlier}"
            raise ConfigError(f"{path} is set twice{also}: first {earlier}={old}, then {path}={value}. Leave one out")


def changes_between(current: Params, wanted: Params) -> list[Change]:
    """Return the values that differ."""
    before, after = flatten(current), flatten(wanted)
    return [Change(path, before.get(path), value) for path, value in after.items() if before.get(path) != value]


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
    wanted = flatten(parse_params(parse_yaml(unix), source=str(path))) | values
    edited = edit_yaml(unix, values)
    try:
        found = flatten(parse_params(parse_yaml(edited), source=str(path)))
    except ConfigError:
        found = {}
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
