"""One run at a time in a project: a second one waits, or ends with a sentence before it changes anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dfkd_core.errors import DfkdError
from dfkd_flows.session.display import say
from dfkd_flows.session.environment import check_writable
from dfkd_tasks.caching.half_files import clear_half_files
from dfkd_tasks.processes.lifeline import OWNER, works_for_owner

__all__ = ["BusyError", "only_run"]

_LOCK = Path(".dfkd/run.lock")
_HOLDER = Path(".dfkd/run.holder.json")
_SECONDS_BETWEEN_TRIES = 0.5


class BusyError(DfkdError):
    """Another run is working in the project."""


@contextmanager
def only_run(*, wait: bool = False) -> Iterator[None]:
    """Hold the project's lock during the block; all processes that it starts work for this one and end with it.

    In a process that works for the holder nothing happens. The system releases the lock if the process is killed.

    Args:
        wait: Whether to wait for another run.

    Raises:
        BusyError: Another process holds the lock.
        DfkdError: The folder cannot be written.
    """
    if works_for_owner():
        yield
        return
    check_writable()
    with _held(wait):
        os.environ[OWNER] = str(os.getpid())
        clear_half_files()
        try:
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            _HOLDER.write_text(json.dumps({"pid": os.getpid(), "since": since}), encoding="utf-8")
            yield
        finally:
            _HOLDER.unlink(missing_ok=True)
            del os.environ[OWNER]


@contextmanager
def _held(wait: bool) -> Iterator[None]:
    lock = FileLock(_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise BusyError(_busy()) from None
        say(f"Waiting for the other run{_described(_holder())} in {Path.cwd()}. Stop waiting with Ctrl-C")
        lock.acquire(poll_interval=_SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        lock.release()


def _busy() -> str:
    holder = _holder()
    stop = f", or stop it with: kill -INT {holder['pid']}" if holder else ""
    return (
        f"Another run{_described(holder)} is working in {Path.cwd()}. Nothing was changed. "
        f"Wait for it with: dfkd run --wait{stop}"
    )


def _described(holder: dict[str, Any]) -> str:
    return f" (process {holder['pid']}, since {holder['since']})" if holder else ""


def _holder() -> dict[str, Any]:
    """Return the process and the start of the other run; empty if it has not noted them yet."""
    try:
        holder = dict(json.loads(_HOLDER.read_text(encoding="utf-8")))
        return holder if {"pid", "since"} <= holder.keys() else {}
    except (OSError, ValueError, TypeError):
        return {}
