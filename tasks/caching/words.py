"""The user's words, what was allowed on this machine, as lists in the folder of the state. Nothing imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dfkd_core.common.digests import write_json
from dfkd_core.common.json_files import parse_json
from dfkd_core.common.regular_files import read_regular
from dfkd_tasks.caching.state import state_folder

__all__ = ["keep_words", "kept_words"]


def kept_words(file: str) -> list[Any]:
    """Return the words in a file of the state; none if it is missing or damaged."""
    try:
        found = parse_json(read_regular(state_folder() / file))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def keep_words(file: str, words: Iterable[Any], *, most: int) -> None:
    """Add words that are not kept yet, and let the oldest go.

    Args:
        file: Name of the file in the folder of the state.
        words: Values for JSON.
        most: Number of words that are kept.
    """
    known = kept_words(file)
    if new := [word for word in words if word not in known]:
        write_json(state_folder() / file, [*known, *new][-most:])
