"""Hints at the setting that was probably meant by an unknown key."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

__all__ = ["closest", "setting_hint", "setting_paths"]

_SIMILAR = 0.75
_MOST_NAMED = 3


def closest(name: str, names: Collection[str], *, cutoff: float = 0.6, otherwise: str | None = None) -> str:
    """Return a hint at the name that was probably meant, or the names that exist.

    Args:
        name: The unknown name.
        names: Those that exist.
        cutoff: Similarity from 0 to 1 that a name must have, see `difflib`.
        otherwise: The hint if none is similar, in place of all names.
    """
    close = get_close_matches(name, names, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are: {', '.join(names)}." if otherwise is None else otherwise


def setting_paths(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all settings below a section, and of the sections within it."""
    for field in dataclasses.fields(section):
        path, value = f"{prefix}{field.name}", getattr(section, field.name)
        yield path
        if dataclasses.is_dataclass(value):
            yield from setting_paths(value, f"{path}.")


def setting_hint(path: str, known: Collection[str], *, prefix: str = "", otherwise: str | None = None) -> str:
    """Return a hint at the setting that was probably meant by an unknown path.

    Args:
        path: The unknown path; its section exists.
        known: Paths of all settings that are possible.
        prefix: Start of both in what the user writes, like `students.NAME.`.
        otherwise: The hint if none is similar, in place of the keys of the section.
    """
    section, _, key = path.rpartition(".")
    here = {_key(item): item for item in known if item.rpartition(".")[0] == section}
    keys = {_key(item) for item in known}
    # A key of this section, then the same key of another one, then a similar one of another.
    for names, cutoff in ((here, _SIMILAR), (keys, 1.0), (here, 0.6), (keys, _SIMILAR)):
        if close := get_close_matches(key, sorted(names), n=1, cutoff=cutoff):
            meant = [here[close[0]]] if names is here else [item for item in known if _key(item) == close[0]]
            return f"did you mean {' or '.join(prefix + item for item in sorted(meant)[:_MOST_NAMED])}?"
    return f"known here: {', '.join(sorted(here))}" if otherwise is None else otherwise


def _key(path: str) -> str:
    return path.rpartition(".")[2]
