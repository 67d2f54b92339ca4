"""Parsing of params.yaml into the frozen configuration tree; each fault is listed by its dotted path."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dfkd_core.errors import ConfigError
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.yaml_text import read_yaml

__all__ = ["PARAMS_FILE", "flatten", "load_params", "parse_params"]

PARAMS_FILE = Path("params.yaml")
_LONGEST_SHOWN = 80
_QUOTES = ". Put it in quotes: YAML reads no, yes, on, off, null, numbers and dates as other types"


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        ConfigError: It cannot be read, or it has faults; the message lists all of them.
    """
    return parse_params(read_yaml(path), source=str(path))


def parse_params(content: Any, *, source: str) -> Params:
    """Turn plain nested mappings into the configuration tree; missing keys have the values of `Params()`.

    Args:
        content: The mappings; None for none.
        source: Their origin, for the message.

    Raises:
        ConfigError: There are unknown keys, wrong types or values out of range; the message lists all of them.
    """
    if faults := list(_odd_values(content)):
        raise ConfigError(_listed(faults, source))
    try:
        return _adapter().validate_python(_completed({} if content is None else content, Params()))
    except ValidationError as error:
        raise ConfigError(_listed([_describe(fault) for fault in error.errors(include_url=False)], source)) from None


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
    kind, value = fault["type"], fault["input"]
    if kind in ("unexpected_keyword_argument", "dataclass_exact_type"):
        return f"{path}: unknown key{_suggestion(path)}"
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
