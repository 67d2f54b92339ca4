"""Ends a process when the processes that it works for end, even if these are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

import psutil

__all__ = ["OWNER", "end_with", "end_with_callers", "start_worker"]

OWNER = "DFKD_OWNER_PID"
"""Environment variable with the process id of the `dfkd run` whose end ends all processes below it."""

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with(processes: Sequence[psutil.Process]) -> None:
    """Kill this process and its children as soon as one of `processes` has ended."""

    def watch() -> None:
        while all(map(_lives, processes)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        _kill_children()
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def end_with_callers() -> None:
    """End with any of the processes from `dfkd run` or `dvc` down to this one; without them, do nothing."""
    owner = int(os.environ.get(OWNER, 0))
    chain = psutil.Process().parents()
    for position, process in enumerate(chain):
        if process.pid == owner or (not owner and _is_dvc(process)):
            end_with(chain[: position + 1])
            return


def start_worker(owner: int) -> None:
    """Make a worker process end with its owner and ignore Ctrl-C, which the owner handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with([psutil.Process(owner)])


def _kill_children() -> None:
    """Kill all child processes of this one, and their children."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(os.path.basename(word) == "dvc" for word in process.cmdline()[:2])
    except psutil.Error:
        return False
