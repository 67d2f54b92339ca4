"""A project of a user's own outside of any repository, next to packages named like our folders, and its clone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import dvc.api
import pytest
import torch

from dfkd_core import load_model
from dfkd_core.transfer_set.manifest import verify_transfer_set
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
            "MLFLOW_TRACKING_URI": f"sqlite:///{path.parent / 'ml.db'}",
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


# Of a package that DVC uses.
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
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
    output = mine.run("dfkd", "run")
    assert "Registered dfkd-student-digits version 1" in output
    assert "Commit what belongs to them: git add dvc.lock && git commit" in output
    assert mine.run("git", "status", "--porcelain") == "?? dvc.lock\n"
    assert "Nothing has changed" in mine.run("dfkd", "run")
    reproduced = mine.run("dvc", "repro")
    assert reproduced.count("Running stage") == 1
    assert "Stage 'evaluate@default' didn't change" in reproduced
    assert "Made" in mine.run("dfkd", "export", "--out", "../exported", "--format", "safetensors")
    assert "A colleague types:" in mine.run("dfkd", "share", str(tmp_path / "store"))
    mine.commit()

    clone = Folder(tmp_path / "clone")
    clone.run("git", "clone", "--quiet", str(mine.path), ".")
    output = clone.run("dfkd", "run")
    assert "Fetching the results from shared" in output
    assert "All stages are up to date" in output
    assert "Changed:" not in output
    assert clone.run("dvc", "status").split() == ["code:", "always", "changed"]
    assert clone.run("dvc", "repro").count("Running stage") == 1
    assert clone.run("git", "status", "--porcelain") == ""
    assert "Made" in clone.run("dfkd", "export", "--out", "../exported_there", "--format", "safetensors")
    exported = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("exported", "exported_there")]
    assert exported[0] == exported[1]
    # The two share one store, which had the student.
    with closing(sqlite3.connect(tmp_path / "ml.db")) as store:
        assert store.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)

    other = Folder(tmp_path / "other")
    other.run("git", "init", "--quiet")
    other.run("dvc", "init", "--quiet")
    other.run("dvc", "get", str(mine.path), "artifacts/students/default", "-o", "student")
    other.run("dvc", "import", str(mine.path), "artifacts/teachers/default/transfer_set", "-o", "images")
    logits = load_model(other.path / "student")(torch.zeros(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    assert verify_transfer_set(other.path / "images").num_images == smaller["synthesis.num_images"]
    with dvc.api.open("artifacts/students/default/config.json", repo=str(mine.path)) as file:
        assert file.read() == (other.path / "student" / "config.json").read_text()
