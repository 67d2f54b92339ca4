"""Notes on flow runs: held while their process lives, found when it was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from dfkd_flows.session.run_notes import of_ended

HOLD = """
import os, subprocess, sys
from uuid import UUID
from dfkd_flows.session.run_notes import hold
hold(UUID(sys.argv[1]))
if len(sys.argv) > 2:
    os.execv(sys.executable, [sys.executable, "-c", "print(1, flush=True); input()"])
child = subprocess.Popen(["sleep", "5"], start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
input()
"""


@pytest.fixture
def holding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Change into a folder, and return a function that starts a process which holds a note on a run."""
    monkeypatch.chdir(tmp_path)
    Path(".dfkd").mkdir()
    started = []

    def start(run_id: UUID, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run_id), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_run_of_a_killed_process__is_found_on_its_server_alone(
    holding: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = uuid4()
    # A process that it has started lives on.
    process = holding(run_id)
    assert of_ended() == {}
    process.kill()
    process.wait()
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    assert of_ended() == {}
    monkeypatch.delenv("PREFECT_API_URL")
    [(found, note)] = of_ended().items()
    assert found == run_id
    note.with_name("no id").touch()
    note.unlink()
    note.mkdir()
    assert of_ended() == {}


def test_run_that_starts_again__is_still_held(holding: Callable[..., subprocess.Popen[str]]) -> None:
    process = holding(uuid4(), "again")
    assert of_ended() == {}
    process.kill()
    process.wait()
    assert len(of_ended()) == 1
