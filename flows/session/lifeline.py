"""Lets a process end with the ones that it works for, also when those are killed without a chance to say so."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

import psutil

__all__ = ["OWNER", "end_with", "end_with_callers", "start_worker"]

OWNER = "DFKD_OWNER_PID"
"""Environment variable with the process id of the `dfkd run` that everything below it ends with."""

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with(processes: Sequence[psutil.Process]) -> None:
    """Kill this process and its children as soon as one of `processes` is gone."""

    def watch() -> None:
        while all(map(_lives, processes)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        _kill_children()
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def end_with_callers() -> None:
    """Watch the processes from `dfkd run` or `dvc` down to this one; without them there is nothing to watch."""
    owner = int(os.environ.get(OWNER, 0))
    chain = psutil.Process().parents()
    for position, process in enumerate(chain):
        if process.pid == owner or (not owner and _is_dvc(process)):
            end_with(chain[: position + 1])
            return


def start_worker(owner: int) -> None:
    """Make a worker process end with its owner, and leave Ctrl-C to the owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with([psutil.Process(owner)])


def _kill_children() -> None:
    """Kill all processes that this one has started, and theirs."""
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
