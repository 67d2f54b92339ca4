from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.processes.worker import needing_workers, start_worker


def pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(os.getpid(), "synthesize")
    )


def test_killed_worker__is_named_with_its_signal() -> None:
    def kill_one_of_two() -> None:
        with needing_workers(), pool(2) as executor:
            other = executor.submit(time.sleep, 60)
            executor.submit(os.getpid).result()
            # The other worker then ends with SIGTERM.
            executor.submit(signal.raise_signal, signal.SIGKILL).result()
            other.result()

    with pytest.raises(DfkdError, match=r"A worker process was ended by SIGKILL .*Continue with the same command"):
        kill_one_of_two()


def test_error_inside_a_worker__stays_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), needing_workers(), pool(1) as executor:
        executor.submit(divmod, 1, 0).result()
