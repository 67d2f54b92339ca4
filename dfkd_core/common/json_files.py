"""JSON files that may be damaged: each fault is one phrase."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["read_json_object"]

_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is not a regular file, not JSON or not an object, has a key twice, or has a number that is not
            finite; the message is the fault without the file's name.
    """
    # Opening a pipe would wait for ever.
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_KINDS[type(content)]} in place of an object")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its number {text[:20]} is too large")
    return value
