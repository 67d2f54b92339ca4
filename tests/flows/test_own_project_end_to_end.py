"""A project of a user's own outside of any repository, next to packages named like our folders, and its clone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dfkd_tasks.caching.code import PACKAGES

SECONDS = 1500


class Folder:
    """Runs the commands of this environment in a folder."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MPL", "DFKD_"))}
        # A user's own packages come first.
        self._environment = {
            **own,
            "PYTHONPATH": f"{path}{os.pathsep}{PACKAGES}",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def run(self, program: str, *arguments: str) -> str:
        own = Path(sys.executable).parent / program
        # As with an environment that is activated for dvc, and for dfkd is not: its stages find it nevertheless.
        path = os.environ["PATH"] if program == "dfkd" else f"{own.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(own) if own.is_file() else program, *arguments], cwd=self.path, stdin=subprocess.DEVNULL,
            env={**self._environment, "PATH": path}, capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "a step")


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_own_project__runs_reproduces_exports_and_is_up_to_date_in_a_clone(
    tmp_path: Path, small: Mapping[str, Any]
) -> None:
    mine = Folder(tmp_path / "mine")
    for name in ("flows", "tasks"):
        (mine.path / name).mkdir()
        (mine.path / name / "__init__.py").write_text("raise ImportError('somebody imported what is mine')\n")
    smaller = {**small, "synthesis.num_images": 200, "distillation.epochs": 1, "evaluation.num_latency_runs": 1}
    settings = [part for name, value in smaller.items() for part in ("--set", f"{name}={value}")]
    assert "Next: dfkd run" in mine.run("dfkd", "init", *settings)
    mine.commit()
    assert "Registered dfkd-student-digits version 1" in mine.run("dfkd", "run")
    assert mine.run("git", "status", "--porcelain") == "?? dvc.lock\n"
    assert "Nothing has changed" in mine.run("dfkd", "run")
    reproduced = mine.run("dvc", "repro")
    assert reproduced.count("Running stage") == 1
    assert "Stage 'evaluate@default' didn't change" in reproduced
    assert "Made" in mine.run("dfkd", "export", "--out", "../exported", "--format", "safetensors")
    mine.commit()

    clone = Folder(tmp_path / "clone")
    clone.run("git", "clone", "--quiet", str(mine.path), ".")
    clone.run("dvc", "remote", "modify", "--local", "local", "url", str(mine.path / ".dvc-store"))
    clone.run("dvc", "pull")
    assert clone.run("dvc", "status").split() == ["code:", "always", "changed"]
    assert clone.run("dvc", "repro").count("Running stage") == 1
    assert clone.run("git", "status", "--porcelain") == ""
    assert "Made" in clone.run("dfkd", "export", "--out", "../exported_there", "--format", "safetensors")
    exported = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("exported", "exported_there")]
    assert exported[0] == exported[1]
