"""The worker processes of a stage. Little is imported, so that a worker watches its owner from its first second."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import psutil

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code import code_digest
from dfkd_tasks.processes.endings import count_oom_kills, ending, signal_of
from dfkd_tasks.processes.lifeline import end_with

__all__ = ["needing_workers", "start_worker"]

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 5.0


def start_worker(owner: int, stage: str) -> None:
    """Make a worker process end with its owner and ignore Ctrl-C, which the owner handles.

    Args:
        owner: Id of the process that started it.
        stage: Stage whose code is hashed now. Python 3.11 sometimes fails to parse code while a thread of Prefect does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with([psutil.Process(owner)])
    code_digest(stage)


@contextmanager
def needing_workers() -> Iterator[None]:
    """Explain a failure of the block by a worker process that was ended from outside.

    Raises:
        DfkdError: A worker was ended by a signal.
    """
    oom_kills = count_oom_kills()
    with _noting_workers() as workers:
        try:
            yield
        except BrokenExecutor as error:
            number = _first_signal(workers)
            if number is None:
                raise
            raise DfkdError(ending("A worker process", number, oom_kills)) from error


@contextmanager
def _noting_workers() -> Iterator[list[BaseProcess]]:
    """Yield a list of the workers that have been seen; a pool forgets those that ended."""
    workers: list[BaseProcess] = []
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(_SECONDS_BETWEEN_LOOKS):
            workers.extend(worker for worker in multiprocessing.active_children() if worker not in workers)

    looker = threading.Thread(target=look, name="workers", daemon=True)
    looker.start()
    try:
        yield workers
    finally:
        finished.set()
        looker.join()


def _first_signal(workers: list[BaseProcess]) -> signal.Signals | None:
    """Return the signal that ended the first worker; the pool then ends the others with SIGTERM."""
    for worker in workers:
        worker.join(_SECONDS_TO_END)
    numbers = [number for worker in workers if (number := signal_of(worker.exitcode or 0))]
    return next((number for number in numbers if number is not signal.SIGTERM), numbers[0] if numbers else None)
