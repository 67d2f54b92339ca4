"""`make setup`: uv gets pip's configuration, pip takes over if uv fails, and an unchanged environment stays."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "install.py"
PIP_CONF = """[global]
index-url = https://me:secret@mirror.test/simple
extra-index-url =
    https://one.test/simple
    https://two.test/simple
timeout = 30
[install]
constraint = /etc/limits.txt
"""
RECORDING_UV = """#!{python}
import json, os, sys
json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}, open({record!r}, "w"))
sys.exit({code})
"""


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put_uv(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int) -> Path:
    """Put a program named uv in front of PATH, which ends with `code`; return the file that it writes."""
    record, program = folder / "record.json", folder / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(RECORDING_UV.format(python=sys.executable, record=str(record), code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return record


def test_uv__gets_pips_configuration_and_no_password_among_its_arguments(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put_uv(tmp_path, monkeypatch, code=0)
    (tmp_path / "pip.conf").write_text(PIP_CONF)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "7")
    installer.install(Path(sys.executable), "torch")
    called = json.loads(record.read_text())
    assert called["arguments"] == ["pip", "install", "--compile-bytecode", "--python", sys.executable, "torch"]
    expected = {
        "UV_DEFAULT_INDEX": "https://me:secret@mirror.test/simple",
        "UV_INDEX": "https://one.test/simple https://two.test/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_CONSTRAINT": "/etc/limits.txt",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_HTTP_TIMEOUT": "7",
    }
    assert {name: called["environment"].get(name) for name in expected} == expected


@pytest.mark.slow
def test_pip__installs_the_same_if_uv_fails(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = put_uv(tmp_path, monkeypatch, code=2)
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.dist-info/RECORD", "")
    installer.install(Path(sys.executable), "--target", str(tmp_path / "site"), str(wheel))
    assert record.is_file()
    assert (tmp_path / "site" / "tiny.py").is_file()
    assert "Installing with pip instead, which takes minutes" in capfd.readouterr().out


def test_an_environment_of_the_same_files__is_left_alone(tmp_path: Path) -> None:
    names = ("requirements.lock", "requirements-dev.lock", "pyproject.toml")
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()
    (tmp_path / ".ready").write_text(digest)
    os.utime(tmp_path / ".ready", (0, 0))
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == [".ready"]
    assert (tmp_path / ".ready").stat().st_mtime > 0
