from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.processes.lifeline import OWNER

SECONDS_TO_END = 5.0
# Starts a program that ends with its callers, prints its id, and lives on.
STARTER = """
import os, subprocess, sys
os.environ[{owner!r}] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", {worker!r}])
input()
"""
WORKER = """
import subprocess, sys, time
from dfkd_tasks.processes.lifeline import end_with_callers
end_with_callers()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
import os
print(os.getpid(), flush=True)
time.sleep(60)
"""


def start(script: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(PACKAGES), **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def end_in_time(pids: list[int]) -> bool:
    deadline = time.monotonic() + SECONDS_TO_END
    while not all(map(has_ended, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all(map(has_ended, pids))


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_processes_below_the_owner__end_after_it_is_killed() -> None:
    with start(STARTER.format(owner=OWNER, worker=WORKER)) as owner:
        assert owner.stdout
        pids = [int(owner.stdout.readline()) for _ in range(2)]
        assert all(map(psutil.pid_exists, pids))
        owner.kill()
        assert end_in_time(pids)


def test_process__whose_owner_has_ended_before_it_looks_ends_at_once() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with start(WORKER, **{OWNER: str(ended.pid)}) as late:
        assert late.wait(timeout=30) == 1
        assert late.stdout
        assert late.stdout.read() == ""


@pytest.mark.parametrize("program", [["dvc"], ["-m", "dvc"]], ids=["dvc", "python -m dvc"])
def test_stage_that_dvc_started__ends_with_it(tmp_path: Path, program: list[str]) -> None:
    starter = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {WORKER!r}])\ninput()\n"
    (tmp_path / "dvc").write_text(starter)
    (tmp_path / "dvc.py").write_text(starter)
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGES}{os.pathsep}{tmp_path}", "DVC_STAGE": "distill"}
    environment.pop(OWNER, None)
    command = [sys.executable, *program]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout
        pids = [int(dvc.stdout.readline()) for _ in range(2)]
        dvc.kill()
        assert end_in_time(pids)
