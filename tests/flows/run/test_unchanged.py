from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dfkd_flows.run.unchanged import States, known_answer
from dfkd_tasks.caching.code import PACKAGES

WATCHED = ("params.yaml", "code", "missing.txt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose files are old enough to be trusted."""
    project = tmp_path / "project"
    for name in (".dfkd", "code/part", "code/__pycache__"):
        (project / name).mkdir(parents=True)
    for name in ("params.yaml", "code/a.py", "code/part/b.py", "code/__pycache__/a.pyc", "note.json"):
        (project / name).write_text(name)
    monkeypatch.chdir(project)
    # The time stamps of creation cannot be set, so the clock is.
    now = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: now + 10_000_000_000)
    States(WATCHED).note_answer(lambda: "nothing to do", notes=[Path("note.json")])
    return project


def test_answer__is_known_while_no_file_changes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_answer(folder) == "nothing to do"
    monkeypatch.chdir(tmp_path)
    assert known_answer(folder) == "nothing to do"
    (folder / "code/__pycache__/a.pyc").write_text("compiled again")
    (folder / "unrelated.txt").write_text("new")
    assert known_answer(folder) == "nothing to do"


CHANGES: dict[str, Callable[[], object]] = {
    "other content of the same size": lambda: Path("params.yaml").write_text("PARAMS.YAML"),
    "the same content, written again": lambda: Path("code/a.py").write_text("code/a.py"),
    "a time stamp": lambda: os.utime("code/part/b.py", (1, 1)),
    "a new file in a folder": lambda: Path("code/part/c.py").write_text(""),
    "a file gone": lambda: Path("code/part/b.py").unlink(),
    "a missing file that appears": lambda: Path("missing.txt").write_text(""),
    "a file that was moved": lambda: Path("params.yaml").rename("code/params.yaml"),
    "a note of the run": lambda: Path("note.json").write_text("other"),
    "a damaged note": lambda: Path(".dfkd/unchanged.json").write_text("{"),
    "a note of another kind": lambda: Path(".dfkd/unchanged.json").write_text('{"watched": 1}'),
    "no note": lambda: Path(".dfkd/unchanged.json").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_answer__is_not_known_after_a_change(folder: Path, change: str) -> None:
    CHANGES[change]()
    assert known_answer(folder) is None


def test_answer__is_found_without_slow_imports(folder: Path) -> None:
    script = (
        "import sys\nfrom dfkd_flows.cli import app\n"
        "try:\n    app(['run'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'yaml', 'prefect', 'mlflow', 'dvc'} & set(sys.modules)))"
    )
    Path("dvc.yaml").write_text("# Stages of dfkd.\n")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["nothing to do", "[]"]


def test_answer__is_not_known_with_other_services(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert known_answer(folder) is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert known_answer(folder) == "nothing to do"


def test_note__is_not_written_if_a_file_changed_while_the_run_worked(folder: Path) -> None:
    before = States(WATCHED)
    Path("params.yaml").write_text("edited meanwhile")
    before.note_answer(lambda: "nothing to do")
    assert known_answer(folder) is None


def test_note__is_not_written_for_young_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text("just now")
    now = Path("params.yaml").stat().st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: now + 1_000_000_000)
    states = States(WATCHED)
    assert not states.are_old
    states.note_answer(lambda: "nothing to do")
    assert known_answer(folder) is None
