"""Parsing of params.yaml into the frozen configuration tree; each fault is listed by its dotted path."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dfkd_core.errors import ConfigError
from flows.settings.params import Params

__all__ = ["PARAMS_FILE", "flatten", "load_params", "parse_params"]

PARAMS_FILE = Path("params.yaml")


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        ConfigError: It cannot be read, or it has faults; the message lists all of them.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}. Restore it with: git checkout {path}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    return parse_params(content or {}, source=str(path))


def parse_params(content: Any, *, source: str) -> Params:
    """Turn plain nested mappings into the configuration tree; missing keys have the values of `Params()`.

    Args:
        content: The mappings.
        source: Their origin, for the message.

    Raises:
        ConfigError: There are unknown keys, wrong types or values out of range; the message lists all of them.
    """
    try:
        return _adapter().validate_python(_completed(content, Params()))
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors(include_url=False)]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError("\n  ".join([f"{count} in {source}:", *faults])) from None


@cache
def _adapter() -> TypeAdapter[Params]:
    """Return what checks `Params`; to build it takes longer than a check."""
    return TypeAdapter(Params)


def _completed(content: Any, defaults: Any) -> Any:
    """Return the mapping with the missing keys of its sections.

    The default of a section can differ from that of its class: the refinement of `soft_target` has its own values.
    """
    if not isinstance(content, Mapping):
        return content
    filled = dict(content)
    for name, default in _fields(defaults).items():
        if not dataclasses.is_dataclass(default):
            filled.setdefault(name, default)
        else:
            filled[name] = _completed(filled.get(name, {}), default)
    return filled


def flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration or of nested mappings by dotted path; a mapping in a field is a leaf."""
    is_mapping = isinstance(section, Mapping)
    leaves: dict[str, Any] = {}
    for name, value in (section if is_mapping else _fields(section)).items():
        path = f"{prefix}{name}"
        nested = dataclasses.is_dataclass(value) or (is_mapping and isinstance(value, Mapping))
        leaves |= flatten(value, f"{path}.") if nested else {path: value}
    return leaves


def _fields(section: Any) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def _describe(fault: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    where = f"{path}: " if path else ""
    if fault["type"] in ("unexpected_keyword_argument", "dataclass_exact_type"):
        return f"{path}: unknown key{_suggestion(path)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}{message}"
    # Class names are often words like these.
    is_unquoted = fault["type"] == "string_type" and not isinstance(fault["input"], Mapping | list | tuple)
    advice = ". Put it in quotes: YAML reads no, yes, on, off, null, numbers and dates as other types" * is_unquoted
    return f"{where}{message[0].lower()}{message[1:]}, got {fault['input']!r}{advice}"


def _suggestion(path: str) -> str:
    known = set(_known_paths())
    close = get_close_matches(path, known, n=1, cutoff=0.75)
    if close:
        return f"; did you mean {close[0]}?"
    section = path.rpartition(".")[0]
    siblings = sorted({item for item in known if item.rpartition(".")[0] == section})
    return f"; known here: {', '.join(item.rpartition('.')[2] for item in siblings)}" if siblings else ""


def _known_paths() -> Iterator[str]:
    for leaf in flatten(Params()):
        parts = leaf.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))
