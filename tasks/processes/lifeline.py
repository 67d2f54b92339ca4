"""Ends a process when the processes that it works for end, even if these are killed.

A thread watches them, as the kernel's own signal (PR_SET_PDEATHSIG) comes when the starting *thread* ends, and pools of
threads start the workers and the server. Call it before slow imports.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

__all__ = [
    "OWNER",
    "descendants",
    "end_with",
    "end_with_callers",
    "interrupt",
    "kill",
    "kill_below",
    "works_for_owner",
]

OWNER = "DFKD_OWNER_PID"
"""Environment variable with the id of the process that holds the project's lock. All processes below end with it."""

_DVC_STAGE = "DVC_STAGE"
"""DVC sets it for the command of a stage."""
_SECONDS_BETWEEN_LOOKS = 0.5
# The shell of a stage and the program that started it.
_CALLERS_OF_A_STAGE = 2


def end_with(processes: Sequence[psutil.Process]) -> None:
    """Kill this process and its children as soon as one of `processes` has ended."""

    def watch() -> None:
        while all(map(_lives, processes)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        _end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def end_with_callers() -> None:
    """End with any of the processes from the owner, or from `dvc`, down to this one.

    Without an owner, and outside of a stage of DVC, do nothing. If the owner has already ended, end at once.
    """
    owner = int(os.environ.get(OWNER, 0))
    if owner == os.getpid() or not (owner or _DVC_STAGE in os.environ):
        return
    chain = psutil.Process().parents()
    last = next((place for place, process in enumerate(chain) if _is_owner(process, owner)), None)
    if owner and last is None:
        _end()
    end_with(chain[: _CALLERS_OF_A_STAGE if last is None else last + 1])


def works_for_owner() -> bool:
    """Return whether a process above this one holds the project's lock."""
    owner = int(os.environ.get(OWNER, 0))
    return any(process.pid == owner for process in psutil.Process().parents())


def descendants(*, session: int | None = None) -> list[psutil.Process]:
    """Return the processes below this one, or those in one session; Prefect's server has a session of its own."""
    below = [child for child in psutil.Process().children(recursive=True) if _lives(child)]
    return [child for child in below if session in (None, _session(child))]


def interrupt(processes: Iterable[psutil.Process]) -> None:
    """Send Ctrl-C to the processes that are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill the processes that are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def kill_below(pid: int) -> None:
    """Kill all processes that a process has started, also in sessions of their own; nothing if it is gone."""
    with suppress(psutil.NoSuchProcess):
        kill(psutil.Process(pid).children(recursive=True))


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return -1


def _end() -> None:
    kill(descendants())
    os._exit(1)


def _is_owner(process: psutil.Process, owner: int) -> bool:
    return process.pid == owner if owner else _is_dvc(process)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_dvc(process: psutil.Process) -> bool:
    """Return whether a process is `dvc`, `python .../dvc` or `python -m dvc`."""
    try:
        return any(os.path.basename(word) == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False
