from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dfkd_core.common.output_folders import filling_folder, is_vacant
from dfkd_core.errors import ConfigError


def fill(folder: Path) -> None:
    with filling_folder(folder, last="README.md") as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "a.txt").write_text("a")
        (staged / "README.md").write_text("whole")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_new_and_an_empty_folder__get_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty2")
    (tmp_path / "empty2").mkdir()
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty", tmp_path / "link"):
        fill(folder)
        assert names(folder) == ["README.md", "inner", "inner/a.txt"]


def fail(folder: Path) -> None:
    with filling_folder(folder, last="README.md") as staged:
        (staged / "a.txt").write_text("half")
        raise KeyError


def test_a_block_that_fails__leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(KeyError):
            fail(folder)
    assert names(tmp_path) == ["old"]


def test_remains_of_a_killed_command__count_as_nothing_and_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    remains = tmp_path / f".dfkd-unfinished-{ended.pid}-abcd"
    remains.mkdir()
    (remains / "a.txt").write_text("half")
    assert is_vacant(tmp_path)
    fill(tmp_path)
    assert names(tmp_path) == ["README.md", "inner", "inner/a.txt"]


def test_a_file_in_its_place__is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is not a folder"):
        fill(tmp_path / "file")
