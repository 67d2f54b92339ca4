"""Regular files, opened once: no pipe and no device, and no exchange between a check and the reading."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular", "read_regular", "unchanged"]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, but no pipe and no device, which could block or never end.

    Raises:
        OSError: It is missing, is no regular file, or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(f"{path} is not a regular file")


def read_regular(path: Path) -> bytes:
    """Return the content of a file. Errors as in `open_regular`."""
    with open_regular(path) as stream:
        return stream.read()


@contextmanager
def unchanged(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file, for a block that checks it and lets another library open the same path.

    Raises:
        OSError: As in `open_regular`.
        ValueError: The path led to another file at the end of the block, or the file was changed.
    """
    with open_regular(path) as stream:
        before = _identity(os.fstat(stream.fileno()))
        yield stream
        if _identity(os.stat(path)) != before:
            raise ValueError("it was changed while it was read")


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
