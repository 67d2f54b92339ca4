"""Presets, `--set` and the editing of params.yaml, which keeps the comments."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from dfkd_core.common.digests import write_atomically
from dfkd_core.errors import ConfigError
from flows.settings.params import Params
from flows.settings.parsing import PARAMS_FILE, flatten, parse_params

__all__ = ["Change", "apply_overrides", "apply_preset", "changes_between", "preset_names", "write_params"]

PRESETS = Path("presets")


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
    return parse_params(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, source=str(path))


def apply_overrides(params: Params, assignments: Sequence[str]) -> Params:
    """Return `params` with the changes of assignments like `synthesis.num_images=2000`.

    Raises:
        ConfigError: An assignment has no `=`, names an unknown key or gives a value that is not allowed.
    """
    content = _nested(flatten(params))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set takes KEY=VALUE, for example synthesis.num_images=2000, got {assignment!r}")
        _set(content, path, _value(text, assignment))
    return parse_params(content, source="--set") if assignments else params


def changes_between(current: Params, wanted: Params) -> list[Change]:
    """Return the values that differ."""
    before, after = flatten(current), flatten(wanted)
    return [Change(path, before.get(path), value) for path, value in after.items() if before.get(path) != value]


def write_params(changes: Sequence[Change], path: Path = PARAMS_FILE) -> None:
    """Write changed values into a parameter file in one step; everything else in it stays as it is.

    Raises:
        ConfigError: The file cannot be written.
    """
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 1000
    document = editor.load(path.read_text(encoding="utf-8"))
    for change in changes:
        _set(document, change.path, _plain(change.new))
    text = io.StringIO()
    editor.dump(document, text)
    try:
        with write_atomically(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _value(text: str, assignment: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"The value in --set {assignment!r} is not YAML") from None


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
