"""One run at a time in a project: a second one ends with a sentence before it changes anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dfkd_core.errors import DfkdError

__all__ = ["BusyError", "only_run"]

_LOCK = Path(".dfkd/run.lock")
_HOLDER = Path(".dfkd/run.holder.json")


class BusyError(DfkdError):
    """Another run is working in the project."""


@contextmanager
def only_run() -> Iterator[None]:
    """Hold the project's lock during the block. The system releases it if the process is killed.

    Raises:
        BusyError: Another process holds it.
    """
    _LOCK.parent.mkdir(exist_ok=True)
    lock = FileLock(_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(_busy()) from None
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        _HOLDER.write_text(json.dumps({"pid": os.getpid(), "since": since}), encoding="utf-8")
        yield
    finally:
        _HOLDER.unlink(missing_ok=True)
        lock.release()


def _busy() -> str:
    try:
        holder = json.loads(_HOLDER.read_text(encoding="utf-8"))
        which = f" (process {holder['pid']}, since {holder['since']})"
        remedy = f"Wait for it, or stop it with: kill -INT {holder['pid']}"
    except (OSError, ValueError, KeyError):
        which, remedy = "", "Wait for it, then run the same command again"
    return f"Another run{which} is working in {Path.cwd()}. Nothing was changed. {remedy}"
