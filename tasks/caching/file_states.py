"""The state of a file, from which a change is seen without reading it: that which git trusts."""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["FileState", "are_old", "file_state"]

FileState = list[int]
"""Device, inode, size, and the times of the last change of content and of state in ns; empty if there is no file."""

# A file can change twice within the resolution of a file system's clock, so the times of a young file prove nothing.
_YOUNG_NS = 2_000_000_000


def file_state(path: str | os.PathLike[str]) -> FileState:
    """Return the state of a file."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def are_old(states: Iterable[FileState], time_ns: int) -> bool:
    """Return whether no file had changed in the two seconds before a time, in ns since the epoch."""
    return all(time_ns - max(state[3:]) > _YOUNG_NS for state in states if state)
