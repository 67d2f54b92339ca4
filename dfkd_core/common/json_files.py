"""JSON that every reader reads in the same way; each fault of a damaged file is one phrase."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dfkd_core.common.regular_files import read_regular

__all__ = ["parse_json", "read_json_object"]

_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def parse_json(text: str | bytes) -> Any:
    """Parse JSON in UTF-8, and refuse what readers disagree on.

    Raises:
        ValueError: It is not JSON, an object has a key twice, a number is not finite, or it is nested too deeply.

    Example:
        >>> from dfkd_core.common.json_files import parse_json
        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
            ...
        ValueError: it has the key 'a' twice
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(
            decoded, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It is not a regular file or cannot be read.
        ValueError: It is not JSON or not an object, has a key twice, or has a number that is not finite; the message is
            the fault without the file's name.
    """
    content = parse_json(read_regular(path))
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
