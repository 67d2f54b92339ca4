from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfkd_flows.session.starter import PARENT_RUN, run_by_starter, starter


@pytest.fixture(scope="module")
def started(make_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Change into a project with a starter, and return its environment."""
    folder = make_project(tmp_path_factory.mktemp("started"))
    (folder / ".dfkd").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with starter():
            yield dict(os.environ)
    assert not list(folder.rglob("*.sock"))


def run_stage(stage: str, environment: dict[str, str]) -> tuple[int, str, bool]:
    """Return the exit code of a stage's command, its last line, and whether it did its own slow imports."""
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dfkd_flows", "stage", stage],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = found.stderr.splitlines()
    return found.returncode, lines[-1], any(line.split()[-1:] == ["torch"] for line in lines)


def test_stage__is_done_by_a_copy_of_the_starter_with_its_exit_code_and_output(started: dict[str, str]) -> None:
    code, last, has_imported = run_stage("train", started)
    assert (code, has_imported) == (2, False)
    assert last == "dfkd: No stage 'train'. Stages: teacher, statistics, synthesize, distill, evaluate"
    # DVC sets variables for each stage, and a run hands over its id.
    handed_over = {"DVC_STAGE": "sleep", PARENT_RUN: "id@server"}
    assert run_stage("sleep", started | handed_over)[1:] == (last.replace("train", "sleep"), False)


def test_stage__with_another_environment_does_its_own_imports(started: dict[str, str]) -> None:
    assert run_stage("train", started | {"OMP_NUM_THREADS": "3"})[::2] == (2, True)


def test_stage__without_a_starter_is_left_to_the_caller(project: Path) -> None:
    assert run_by_starter() is None


@pytest.mark.parametrize("name", ["starter.sock", "starter.log"])
def test_starter__that_cannot_start_is_done_without(project: Path, name: str) -> None:
    (project / ".dfkd" / name / "folder").mkdir(parents=True)
    program = "from dfkd_flows.session.starter import *\nwith starter(): assert run_by_starter() is None"
    subprocess.run([sys.executable, "-c", program], check=True)
