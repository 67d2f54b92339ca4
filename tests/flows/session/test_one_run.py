from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dfkd_flows.cli import app
from dfkd_flows.session.one_run import BusyError, only_run
from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.processes.lifeline import OWNER


@pytest.mark.parametrize(
    "command", [["run", "--set", "seed=5"], ["tune", "--minutes", "1", "--set", "seed=5"], ["stage", "teacher"]]
)
def test_a_second_run__ends_with_a_code_of_its_own_and_changes_nothing(project: Path, command: list[str]) -> None:
    before = (project / "params.yaml").read_bytes()
    with only_run():
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 3
    assert f"Another run (process {os.getpid()}, since 2" in done.output
    assert f"kill -INT {os.getpid()}" in done.output
    assert (project / "params.yaml").read_bytes() == before


def test_waiting_run__starts_after_the_other_has_ended(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waited = []

    def wait() -> None:
        with only_run(wait=True):
            waited.append(released)

    released = False
    waiter = threading.Thread(target=wait)
    with only_run():
        waiter.start()
        time.sleep(0.3)
        released = True
    waiter.join(timeout=20)
    assert waited == [True]
    assert f"Waiting for the other run (process {os.getpid()}, since 2" in capsys.readouterr().out


def test_process_of_the_run__works_in_its_lock(project: Path) -> None:
    script = "from dfkd_flows.session.one_run import only_run\nwith only_run():\n    print('works')\n"
    command = [sys.executable, "-c", script]
    environment = {"PYTHONPATH": str(PACKAGES)}
    with only_run():
        mine = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert mine.stdout == "works\n"
        foreign = {name: value for name, value in os.environ.items() if name != OWNER}
        other = subprocess.run(command, env={**foreign, **environment}, capture_output=True, text=True)
        assert "BusyError" in other.stderr
    assert OWNER not in os.environ


def test_the_lock__goes_with_the_run_and_with_a_process_that_is_killed(project: Path) -> None:
    with only_run():
        pass
    script = (
        "from dfkd_flows.session.one_run import only_run\n"
        "with only_run():\n    print('held', flush=True)\n    input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(PACKAGES)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"process {holder.pid}, since"), only_run():
            pass
        holder.kill()
    with only_run():
        pass
