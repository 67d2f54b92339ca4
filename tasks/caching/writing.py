"""Whether files can be written into a folder, tried without leaving anything behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["write_fault"]


def write_fault(folder: Path) -> str:
    """Return the reason that no file can be written into a folder, empty if one can.

    Args:
        folder: An existing folder, or one that would be made.
    """
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        return f"{path} is a file, not a folder"
    try:
        # Rights do not answer this: they do not know of read-only mounts and quotas.
        with tempfile.TemporaryFile(dir=path):
            return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
