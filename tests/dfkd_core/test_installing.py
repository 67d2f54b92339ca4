"""The commands that install what is missing, in a checkout and next to an installed copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import split

import pytest

import dfkd_core
from dfkd_core.installing import checkout, install_command, install_packages_command, pipeline_fault, version_text

ROOT = Path(__file__).resolve().parents[2]
METADATA = """Metadata-Version: 2.4
Name: dfkd
Version: 7.1.0
Requires-Dist: torch<3,>=2.8
Provides-Extra: onnx
Requires-Dist: onnx<2,>=1.18; extra == "onnx"
Requires-Dist: not-on-this-system; sys_platform == "nowhere" and extra == "onnx"
Provides-Extra: pipeline
Requires-Dist: numpy; extra == "pipeline"
Requires-Dist: no-such-a; extra == "pipeline"
Requires-Dist: no-such-b>=3; extra == "pipeline"
"""
Ask = Callable[[str], str]


@pytest.fixture
def ask_installed(tmp_path: Path) -> Ask:
    """Return a function that evaluates an expression in a Python that imports an installed copy of this module."""
    for name in ("__init__.py", "__init__.pyi", "installing.py", "errors.py"):
        (tmp_path / "dfkd_core").mkdir(exist_ok=True)
        shutil.copy2(Path(dfkd_core.__path__[0]) / name, tmp_path / "dfkd_core" / name)
    (tmp_path / "dfkd-7.1.0.dist-info").mkdir()
    (tmp_path / "dfkd-7.1.0.dist-info" / "METADATA").write_text(METADATA)

    def ask(expression: str) -> str:
        code = f"import dfkd_core.installing as installing; print({expression})"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
        ).stdout.strip()

    return ask


def test_checkout__commands_name_its_folder_from_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkout() == ROOT
    assert split(install_command("onnx")) == [sys.executable, "-m", "pip", "install", "-e", f"{ROOT}[onnx]"]


def test_checkout__single_packages_have_the_ranges_of_pyproject() -> None:
    words = split(install_packages_command("torch", "fastapi", "click>=8"))[4:]
    assert words == ["torch<3,>=2.8", "fastapi<0.154,>=0.115", "click>=8"]


def test_checkout__here_everything_is_installed() -> None:
    assert pipeline_fault() == ""
    assert version_text().startswith("dfkd 0.1.0, torch 2.")
    assert version_text().endswith(f"code in {ROOT}")


def test_installed_copy__commands_name_the_packages_and_never_dfkd(ask_installed: Ask) -> None:
    assert ask_installed("installing.checkout()") == "None"
    assert split(ask_installed("installing.install_command('onnx')"))[3:] == ["install", "onnx<2,>=1.18"]
    assert split(ask_installed("installing.install_packages_command('torch')"))[3:] == ["install", "torch<3,>=2.8"]


def test_installed_copy__an_incomplete_pipeline_is_named_with_its_command(ask_installed: Ask) -> None:
    text = ask_installed("installing.pipeline_fault()")
    assert text.startswith("This command needs 2 packages that are not installed (no-such-a, no-such-b). Install")
    assert split(text)[-3:] == ["numpy", "no-such-a", "no-such-b>=3"]


def test_installed_copy__names_its_version_and_folder(ask_installed: Ask, tmp_path: Path) -> None:
    assert ask_installed("installing.version_text()").startswith("dfkd 7.1.0, torch 2.")
    assert ask_installed("installing.version_text()").endswith(f"code in {tmp_path}")


def test_an_environment_without_pip__gets_a_command_of_uv(ask_installed: Ask) -> None:
    # `None` in sys.modules is a package that cannot be found.
    missing = "__import__('sys').modules.__setitem__('pip', None) or installing.install_command('onnx')"
    assert split(ask_installed(missing))[:5] == ["uv", "pip", "install", "--python", sys.executable]
