from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd_tasks.dvc_project.leftovers import clear_dead_locks, clear_half_runs, set_aside_damaged_lock


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return DVC's temporary folder of the current project."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / ".dvc" / "tmp"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def running_dvc() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def lock(folder: Path, pid: int) -> Path:
    entry = {"pid": pid, "cmd": "dvc repro"}
    path = folder / "rwlock"
    path.write_text(json.dumps({"write": {"/x/out": entry}, "read": {"/x/in": [entry]}}))
    return path


def held(path: Path) -> list[Any]:
    content = json.loads(path.read_text())
    return [*content["write"], *(one for holders in content["read"].values() for one in holders)]


def test_locks_of_dead_processes__are_cleared(folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = lock(folder, ended.pid)
    clear_dead_locks()
    assert held(path) == []


@pytest.mark.parametrize("pid", [os.getpid(), 1], ids=["this process", "one that is not DVC"])
def test_locks_of_a_number_that_another_process_has_now__are_cleared(folder: Path, pid: int) -> None:
    path = lock(folder, pid)
    clear_dead_locks()
    assert held(path) == []


def test_locks_of_a_running_dvc__are_kept(folder: Path, running_dvc: int) -> None:
    path = lock(folder, running_dvc)
    clear_dead_locks()
    assert len(held(path)) == 2


def test_locks_that_an_earlier_process_with_the_number_had__are_cleared(folder: Path, running_dvc: int) -> None:
    path = lock(folder, running_dvc)
    os.utime(path, (0, 0))
    clear_dead_locks()
    assert held(path) == []


@pytest.mark.parametrize("text", ["", '{"write": {"/x', "[]", '{"write": 3}'])
def test_list_of_locks__that_was_cut_off_is_removed(folder: Path, text: str) -> None:
    (folder / "rwlock").write_text(text)
    clear_dead_locks()
    assert not (folder / "rwlock").exists()


def test_no_list_of_locks__is_well(folder: Path) -> None:
    clear_dead_locks()
    assert not (folder / "rwlock").exists()


@pytest.mark.parametrize(
    "text", ["schema: '2.0'\nstages:\n  a:\n    cmd", "<<<<<<< HEAD\n", "- 1\n", "\0\1", "stages: 3\n"]
)
def test_damaged_dvc_lock__is_kept_under_another_name(folder: Path, text: str) -> None:
    Path("dvc.lock").write_text(text)
    said = set_aside_damaged_lock()
    assert ".dfkd/dvc.lock.damaged" in said
    assert Path(".dfkd/dvc.lock.damaged").read_text() == text
    assert not Path("dvc.lock").exists()
    assert set_aside_damaged_lock() == ""


def test_good_dvc_lock__stays(folder: Path) -> None:
    text = "schema: '2.0'\nstages:\n  a:\n    cmd: echo\n    outs:\n    - path: b\n      md5: 0123abcd\n      size: 1\n"
    Path("dvc.lock").write_text(text)
    assert set_aside_damaged_lock() == ""
    assert Path("dvc.lock").read_text() == text


def test_half_runs__are_removed_and_whole_ones_stay(tmp_path: Path) -> None:
    whole, name = "cmd: echo\nouts: []\n", "a" * 64
    for folder, files in {
        "none": {},
        "cut": {name: "cmd: ec"},
        "empty": {name: ""},
        "temporary": {".x.tmp": whole},
        "whole": {name: whole, ".y.tmp": whole},
    }.items():
        (tmp_path / "ab" / folder).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "ab" / folder / file).write_text(text)
    clear_half_runs(tmp_path)
    assert list(tmp_path.glob("*/*")) == [tmp_path / "ab" / "whole"]
    assert [path.name for path in tmp_path.glob("*/*/*")] == [name]


def test_half_runs__no_cache_is_well(tmp_path: Path) -> None:
    clear_half_runs(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
