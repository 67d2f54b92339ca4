"""The address of the user's Prefect server is the one that Prefect itself would use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfkd_flows.session.prefect_settings import find_address, keep_profiles
from dfkd_flows.session.server import named_server

PROFILES = """
active = "team"
[profiles.team]
PREFECT_API_URL = "http://me:secret@team:4200/api"
[profiles.other]
PREFECT_API_URL = "http://other:4200/api"
[profiles.ephemeral]
PREFECT_SERVER_EPHEMERAL_ENABLED = "true"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "profiles.toml").write_text(PROFILES)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    keep_profiles()
    # As for a run: its state is in the project.
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".dfkd" / "prefect"))
    return tmp_path


def test_find_address__in_prefect_s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_address().url == "http://me:secret@team:4200/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert find_address().url == "http://other:4200/api"
    monkeypatch.setenv("PREFECT_PROFILE", "ephemeral")
    assert find_address() is None
    Path("pyproject.toml").write_text('[tool.prefect.api]\nurl = "http://pyproject/api"\n')
    assert find_address().url == "http://pyproject/api"
    Path("prefect.toml").write_text('[api]\nurl = "http://toml/api"\n')
    assert find_address().url == "http://toml/api"
    Path(".env").write_text("PREFECT_API_URL=http://dotenv/api\n")
    assert find_address().url == "http://dotenv/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://environment/api")
    assert find_address().url == "http://environment/api"


def test_find_address__agrees_with_prefect() -> None:
    program = "import prefect.settings as s; print(s.get_current_settings().api.url)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == find_address().url, done.stderr


@pytest.mark.parametrize("content", ["", "active = 3", "profiles = 1", "[", "active = 'gone'\n[profiles.a]\nx = 1\n"])
def test_find_address__a_damaged_file_names_no_server(home: Path, content: str) -> None:
    (home / "home" / "profiles.toml").write_text(content)
    assert find_address() is None


def test_a_named_server__is_shown_without_its_password_and_with_the_way_out() -> None:
    fault = named_server().fault()
    assert "secret" not in fault
    assert "http://team:4200/api (profile team in " in fault
    assert fault.endswith("export PREFECT_PROFILE=ephemeral")
    Path(".env").write_text("PREFECT_API_URL=http://dotenv/api\n")
    assert named_server().fault().endswith("remove PREFECT_API_URL from .env")
