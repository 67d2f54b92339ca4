"""Parsing of params.yaml into the frozen configuration tree; each fault is listed by its dotted path."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dfkd_core.errors import ConfigError
from dfkd_flows.settings.hints import setting_hint, setting_paths
from dfkd_flows.settings.members import GROUPS, flat_changes, member_faults, typed_changes
from dfkd_flows.settings.notify import NotifyConfig
from dfkd_flows.settings.params import Params, Sections
from dfkd_flows.settings.yaml_text import read_yaml, value_text

__all__ = ["PARAMS_FILE", "check_complete", "flatten", "has_values", "load_notify", "load_params", "parse_params"]

PARAMS_FILE = Path("params.yaml")
_LONGEST_SHOWN = 80
_QUOTES = ". Put it in quotes: YAML reads no, yes, on, off, null, numbers and dates as other types"


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        ConfigError: It cannot be read, or it has faults; the message lists all of them.
    """
    return parse_params(read_yaml(path), source=str(path))


def load_notify(path: Path = PARAMS_FILE) -> NotifyConfig:
    """Read the section `notify` alone, of a file that may have faults elsewhere.

    Raises:
        ConfigError: The file cannot be read, or the section has faults.
    """
    content = read_yaml(path)
    section = content.get("notify") if isinstance(content, Mapping) else None
    return parse_params({"notify": section}, source=str(path)).notify


def check_complete(path: Path = PARAMS_FILE) -> None:
    """Check that a parameter file has the sections that dvc.yaml reads, teachers and students; others may be missing.

    Raises:
        ConfigError: It lacks one, or cannot be read.
    """
    content, defaults = read_yaml(path) or {}, Params()
    missing = [group for group in GROUPS if group not in content]
    if missing:
        lines = "\n".join(f"{group}: {value_text(getattr(defaults, group))}" for group in missing)
        raise ConfigError(f"{path} has no {' and no '.join(missing)}, which dvc.yaml needs. Add at its end:\n{lines}")


def parse_params(content: Any, *, source: str) -> Params:
    """Turn plain nested mappings into the configuration tree; missing keys have the values of `Params()`.

    The changes of a teacher or a student are checked in the sections that they change.

    Args:
        content: The mappings; None for none.
        source: Their origin, for the message.

    Raises:
        ConfigError: There are unknown keys, wrong types or values out of range; the message lists all of them.
    """
    if faults := list(_odd_values(content)):
        raise ConfigError(_listed(faults, source))
    base, members = _parted({} if content is None else content)
    sections, faults = _checked(base)
    for group, named in members.items():
        faults += member_faults(group, named, Sections())
    if members.get("teachers") == {}:
        faults.append("teachers: there must be at least one")
    changes: dict[str, Any] = {}
    if sections and not faults:
        for group, named in members.items():
            changes[group], found = _typed_members(group, named, base)
            faults += found
    if sections is None or faults:
        raise ConfigError(_listed(faults, source))
    try:
        return Params(**_fields(sections), **changes)
    except ConfigError as error:
        raise ConfigError(_listed([str(error)], source)) from None


def has_values(section: Any, name: str, content: Any) -> bool:
    """Return whether a section has the values in plain mappings, such as those of dvc.lock; missing keys are defaults.

    Args:
        section: The section, or a value beside the sections.
        name: Its key in params.yaml.
        content: The mappings; with a fault, such as a key of an earlier version, they are other values.
    """
    made, _ = _checked({name: content})
    return made is not None and getattr(made, name) == section


def _parted(content: Any) -> tuple[Any, dict[str, Any]]:
    """Return the sections that hold for all, and the teachers and students as far as they are there."""
    if not isinstance(content, Mapping):
        return content, {}
    members = {group: content[group] for group in GROUPS if group in content}
    return {name: value for name, value in content.items() if name not in members}, members


def _checked(content: Any, prefix: str = "", own: Collection[str] = ()) -> tuple[Sections | None, list[str]]:
    """Return the sections, None if they have faults, and the faults.

    Args:
        content: The sections.
        prefix: Start of the paths in the faults: of a teacher or a student.
        own: The sections that can be changed at this place; all if there are none.
    """
    try:
        return _adapter().validate_python(_completed(content, Sections())), []
    except ValidationError as error:
        return None, [f"{prefix}{_describe(fault, prefix, own)}" for fault in error.errors(include_url=False)]


def _typed_members(group: str, members: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the changes of each teacher or student with values of the right types, and the faults in them.

    Args:
        group: A key of `GROUPS`.
        members: Its content.
        base: The sections that hold for all, without faults.
    """
    typed: dict[str, Any] = {}
    faults: list[str] = []
    for name, content in members.items():
        changes = {key: value for key, value in (content or {}).items() if key in GROUPS[group]}
        sections, found = _checked(_overlaid(base, changes, Sections()), f"{group}.{name}.", GROUPS[group])
        faults += found
        if sections:
            own = {key: value for key, value in (content or {}).items() if key not in changes}
            typed[name] = own | typed_changes(changes, sections)
    return typed, faults


def _overlaid(content: Any, changes: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
    """Return the content of a section with changes in it, also in the sections within it."""
    filled = dict(content) if isinstance(content, Mapping) else {}
    for name, value in changes.items():
        default = getattr(defaults, name, None)
        nested = dataclasses.is_dataclass(default) and (value is None or isinstance(value, Mapping))
        filled[name] = _overlaid(filled.get(name), value or {}, default) if nested else value
    return filled


def _listed(faults: Sequence[str], source: str) -> str:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n  ".join([f"{count} in {source}:", *faults])


def _odd_values(value: Any, path: str = "") -> Iterator[str]:
    """Yield values that YAML can express and that are no settings: they could be neither stored nor compared."""
    where = f"{path}: " if path else ""
    if isinstance(value, Mapping):
        yield from (f"{where}keys must be text, got {_shown(key)}" for key in value if not isinstance(key, str))
        for key, item in value.items():
            yield from _odd_values(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _odd_values(item, f"{path}.{position}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where}must be a finite number, got {value}"
    elif isinstance(value, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value):
        yield f"{where}must be text that can be written into a file, got {_shown(value)}"
    elif isinstance(value, datetime.date | bytes | set):
        advice = _QUOTES * isinstance(value, datetime.date)
        yield f"{where}must be text, a number, true, false, a list or keys with values, got {_shown(value)}{advice}"


@cache
def _adapter() -> TypeAdapter[Sections]:
    """Return what checks the sections; to build it takes longer than a check."""
    return TypeAdapter(Sections)


def _completed(content: Any, defaults: Any) -> Any:
    """Return the mapping with the missing keys of its sections.

    The default of a section can differ from that of its class: the refinement of `soft_target` has its own values.
    """
    if not isinstance(content, Mapping):
        return content
    filled = dict(content)
    for name, default in _fields(defaults).items():
        value = filled.setdefault(name, default)
        if dataclasses.is_dataclass(default):
            # A section whose keys are all commented out is empty.
            filled[name] = default if value in (None, default) else _completed(value, default)
        elif default == () and isinstance(value, int | float | str):
            filled[name] = (value,)
        elif isinstance(value, bool) and type(default) in (int, float):
            # Pydantic takes true as 1; of a text it says that it is no number.
            filled[name] = str(value).lower()
    return filled


def flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration or of nested mappings by dotted path; a mapping in a field is a leaf.

    The changes of teachers and students are leaves like `teachers.NAME.synthesis.num_images`.
    """
    is_mapping = isinstance(section, Mapping)
    leaves: dict[str, Any] = {}
    for name, value in (section if is_mapping else _fields(section)).items():
        path = f"{prefix}{name}"
        nested = dataclasses.is_dataclass(value) or (is_mapping and isinstance(value, Mapping))
        if isinstance(section, Params) and name in GROUPS:
            for member, changes in value.items():
                leaves |= flat_changes(changes, section, f"{path}.{member}")
        else:
            leaves |= flatten(value, f"{path}.") if nested else {path: value}
    return leaves


def _fields(section: Any) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def _describe(fault: Mapping[str, Any], prefix: str, own: Collection[str]) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    where = f"{path}: " if path else ""
    kind, value = fault["type"], fault["input"]
    if kind in ("unexpected_keyword_argument", "dataclass_exact_type"):
        known = [*([] if own else GROUPS), *setting_paths(Sections())]
        possible = [item for item in known if not own or item.partition(".")[0] in own]
        return f"{path}: unknown key; {setting_hint(path, possible, prefix=prefix)}"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}{message}"
    if kind == "dataclass_type":
        return f"{where}should be a section, that is keys with values, got {_shown(value)}"
    # Names of classes are often words like these.
    is_unquoted = kind == "string_type" and not isinstance(value, Mapping | list | tuple)
    return f"{where}{message[0].lower()}{message[1:]}, got {_shown(value)}{_QUOTES * is_unquoted}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
