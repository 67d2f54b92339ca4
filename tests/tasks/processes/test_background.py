"""Services in the background, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from dfkd_tasks.processes.background import MARK, Background, end, leftovers, note_of, running

Start = Callable[..., subprocess.Popen[bytes]]
SLEEP = "import time; time.sleep(60)"
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).wait()"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that starts a process of the project in the current folder."""
    monkeypatch.chdir(tmp_path)
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str = SLEEP, project: str | None = str(tmp_path)) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **({MARK: project} if project else {})}
        started.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def noted(process: subprocess.Popen[bytes], project: Path | None = None) -> Background:
    service = Background(
        pid=process.pid, project=str(project or Path.cwd()), url="http://127.0.0.1:4711/api", started="2026-01-01"
    )
    note_of("prefect").parent.mkdir(parents=True, exist_ok=True)
    note_of("prefect").write_text(json.dumps(asdict(service)))
    return service


def test_service__is_found_while_it_runs(start: Start) -> None:
    process = start()
    assert running("prefect") is None
    service = noted(process)
    assert running("prefect") == service
    assert service.port == 4711
    process.kill()
    process.wait()
    assert running("prefect") is None


def test_reused_process_id__is_no_service(start: Start) -> None:
    noted(start(project=None))
    assert running("prefect") is None


def test_copied_folder__has_no_service_of_the_original(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = noted(start())
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    noted_path = note_of("prefect")
    noted_path.parent.mkdir(parents=True)
    noted_path.write_text(json.dumps(asdict(service)))
    assert running("prefect") is None


def test_moved_folder__keeps_its_service(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    process = start(project=str(before))
    monkeypatch.chdir(before)
    noted(process)
    before.rename(after)
    monkeypatch.chdir(after)
    assert running("prefect") is not None


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_damaged_note__is_no_service(start: Start, note: str) -> None:
    note_of("prefect").parent.mkdir(parents=True)
    note_of("prefect").write_text(note)
    assert running("prefect") is None


def test_end__ends_the_processes_below_too(start: Start) -> None:
    process = start(WITH_CHILD)
    service = noted(process)
    deadline = time.monotonic() + 30
    while not (below := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    end(service)
    assert process.poll() is not None
    assert below
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below)


def test_leftovers__are_those_of_this_project_alone(start: Start) -> None:
    own, other, unmarked = start(), start(project="/elsewhere"), start(project=None)
    leftovers()
    assert own.poll() is not None
    assert other.poll() is None
    assert unmarked.poll() is None
