from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dfkd_flows.session.own_code import is_foreign
from dfkd_tasks.caching.code import PACKAGES

ROOT = Path(__file__).resolve().parents[3]


def test_clone__runs_its_own_code(tmp_path: Path, make_project: Callable[[Path], Path]) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    make_project(clone)
    for name in ("dfkd_core", "tasks", "flows"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "src", clone / "src", symlinks=True)
    cli = clone / "flows" / "cli.py"
    cli.write_text(cli.read_text().replace("Data-free knowledge distillation:", "The clone:"))
    command = tmp_path / "dfkd"
    command.write_text("from dfkd_flows.cli import main\nmain()\n")

    def shown(folder: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
        done = subprocess.run(
            [sys.executable, str(command), "--help"], cwd=folder, env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return done.stdout

    assert "The clone:" in shown(clone / "flows")
    assert "Data-free" in shown(ROOT)


def test_project_without_code__uses_the_installed_one(tmp_path: Path) -> None:
    assert not is_foreign(tmp_path)
    assert not is_foreign(ROOT)
    assert is_foreign(ROOT, tmp_path)
