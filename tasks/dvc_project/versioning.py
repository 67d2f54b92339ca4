"""DVC as tasks: reproduce the changed stages, push to and pull from the remote."""

from __future__ import annotations

import subprocess

from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.errors import DfkdError
from dfkd_tasks.dvc_project.remote import check_remote
from dfkd_tasks.dvc_project.status import dvc_program, run_dvc
from dfkd_tasks.processes.endings import count_oom_kills, ending, signal_of

__all__ = ["StageFailedError", "pull", "push", "reproduce"]


class StageFailedError(DfkdError):
    """A stage failed and has printed the reason."""


@task(name="dvc repro", cache_policy=NO_CACHE)
def reproduce(*stages: str) -> None:
    """Reproduce the named stages and those before them, by default all; their output is printed."""
    oom_kills = count_oom_kills()
    # Not `run`, which kills it after Ctrl-C while its stage still ends in order.
    status = subprocess.Popen(dvc_program("repro", *stages), stdin=subprocess.DEVNULL).wait()
    if number := signal_of(status):
        raise DfkdError(ending("dvc repro", number, oom_kills))
    if status:
        raise StageFailedError


@task(name="dvc push", cache_policy=NO_CACHE)
def push() -> None:
    """Copy the results to the remote, including the run cache."""
    # If it is away, DVC would report each file.
    check_remote()
    run_dvc("push")


@task(name="dvc pull", cache_policy=NO_CACHE)
def pull() -> None:
    """Fetch results from the remote, including the run cache; missing ones are made later."""
    run_dvc("pull")
