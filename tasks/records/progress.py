"""Passes progress reports from the core to the display, also out of worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd_core.progress import OnProgress, Progress

__all__ = ["count_noted", "listening", "noting", "report"]

_listeners: list[OnProgress] = []
_SECONDS_BETWEEN_NOTES = 0.3


@contextmanager
def listening(listener: OnProgress) -> Iterator[None]:
    """Send every report of this process to `listener` while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(progress: Progress) -> None:
    """Pass a report to the listeners."""
    for listener in _listeners:
        listener(progress)


@contextmanager
def noting(path: Path, size: int) -> Iterator[OnProgress]:
    """Yield a callback that writes the number of finished units, of `size`, into a small file for another process.

    If the block succeeds, the file holds `size`; if it fails, the file is deleted.
    """
    last = 0.0
    path.write_text("0")

    def note(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_NOTES:
            last = time.monotonic()
            path.write_text(str(size * progress.done // progress.total))

    try:
        yield note
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.write_text(str(size))


def count_noted(folder: Path) -> int:
    """Return the sum of the numbers in the progress files of `folder`."""
    total = 0
    for path in folder.glob("*.progress"):
        with suppress(OSError, ValueError):
            total += int(path.read_text())
    return total
