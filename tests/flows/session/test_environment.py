from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dfkd_core.errors import DfkdError
from dfkd_flows.cli import app
from dfkd_flows.session.environment import activation, check_writable, find_project
from dfkd_tasks.processes.endings import means_full_disk, remedy


def test_writable_folder__passes_and_keeps_no_file(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list((tmp_path / ".dfkd").iterdir()) == []


def test_folder_that_cannot_be_written__is_named_with_the_next_command(tmp_path: Path) -> None:
    (tmp_path / ".dfkd").write_text("a file")
    with pytest.raises(DfkdError, match=r"Cannot write to .*: .*df -h"):
        check_writable(tmp_path)


def test_project__is_found_from_its_folders_and_nowhere_else(project: Path) -> None:
    (project / "reports").mkdir()
    assert find_project(project / "reports") == project
    assert find_project(project.parent) is None


def test_file_that_cannot_be_read__is_reported_with_the_next_step(project: Path) -> None:
    (project / ".dfkd").write_text("a file")
    done = CliRunner().invoke(app, ["show"])
    assert done.exit_code == 1
    assert "continue with the same command" in done.output


def test_activation__is_a_command_for_the_present_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "an env"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.chdir(tmp_path)
    assert activation() == ""
    (tmp_path / "an env/bin").mkdir(parents=True)
    (tmp_path / "an env/bin/activate").touch()
    assert activation() == ". 'an env/bin/activate'"
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert activation() == f". '{tmp_path}/an env/bin/activate'"
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert activation() == ""


@pytest.mark.parametrize(
    ("number", "step"),
    [(errno.ENOSPC, "df -h"), (errno.EFBIG, "ulimit -f"), (errno.EROFS, "Mount"), (errno.EIO, "disk")],
)
def test_remedy__fits_the_error(number: int, step: str) -> None:
    assert step in remedy(OSError(number, ""))


def test_full_disk__is_seen_behind_the_errors_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert means_full_disk(RuntimeError("(sqlite3.OperationalError) database or disk is full"))
    assert means_full_disk(
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed: No space left on device")
    )
    assert not means_full_disk(RuntimeError("disk I/O error"))
