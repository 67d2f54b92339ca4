"""DVC as tasks: reproduce the changed stages, push to and pull from the remote."""

from __future__ import annotations

import subprocess
import sys

from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.errors import DfkdError
from tasks.dvc_project.status import dvc_command, last_error

__all__ = ["StageFailedError", "pull", "push", "reproduce"]

_REPORTED = "failed to reproduce"


class StageFailedError(DfkdError):
    """A stage failed and has printed the reason."""


@task(name="dvc repro", cache_policy=NO_CACHE)
def reproduce(*stages: str) -> None:
    """Reproduce the named stages and those before them, by default all; their output is printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.dvc_project.repro", *stages],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    assert process.stderr
    stage_failed = False
    for line in process.stderr:
        stage_failed |= _REPORTED in line
        if _REPORTED not in line:
            sys.stderr.write(line)
    if process.wait():
        raise StageFailedError("" if stage_failed else "dvc repro failed. Show more with: dvc repro --verbose")


@task(name="dvc push", cache_policy=NO_CACHE)
def push() -> None:
    """Copy the results to the remote, including the run cache."""
    _run("push", "--quiet", "--run-cache")


@task(name="dvc pull", cache_policy=NO_CACHE)
def pull() -> None:
    """Fetch results from the remote; missing ones are made later."""
    _run("pull", "--quiet", "--run-cache", "--allow-missing")


def _run(*arguments: str) -> None:
    done = subprocess.run(
        dvc_command(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise DfkdError(f"dvc {arguments[0]} failed: {last_error(done.stderr)}")
