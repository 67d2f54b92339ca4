"""What git has of a project's files, asked of real repositories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dfkd_tasks.dvc_project.git_state import (
    COMMITTED,
    commit_command,
    commit_hint,
    in_repository,
    to_commit,
    uncommitted,
)


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(params=["", "sub/project"])
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Change into a folder of a repository, with the files of a project."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    project = tmp_path / request.param
    for path in COMMITTED:
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    monkeypatch.chdir(project)
    return project


def test_uncommitted__are_new_changed_and_ignored_files(project: Path) -> None:
    names = {str(path) for path in COMMITTED}
    assert uncommitted(COMMITTED) == dict.fromkeys(names, False)
    git("add", ".")
    assert set(uncommitted(COMMITTED)) == names
    git("commit", "--quiet", "-m", "first")
    assert uncommitted(COMMITTED) == {}
    (project / "params.yaml").write_text("seed: 1")
    (project / ".gitignore").write_text("/weights/\n*.pth\n")
    (project / "weights").mkdir()
    for name in ("weights/a.pt", "b.pth", "a file.pt"):
        (project / name).touch()
    files = [*COMMITTED, Path("weights/a.pt"), Path("b.pth"), Path("a file.pt"), Path("none.pt")]
    assert uncommitted(files) == {
        "params.yaml": False, ".gitignore": False, "weights/a.pt": True, "b.pth": True, "a file.pt": False,
    }  # fmt: skip


def test_commit_hint__is_given_until_git_has_the_lock(project: Path) -> None:
    assert in_repository()
    hint = commit_hint()
    assert "git add .dvc/config" in hint
    assert "dvc.lock" in hint
    assert len(hint.splitlines()) == 1
    git("add", *hint.partition("git add ")[2].partition(" && ")[0].split())
    assert commit_hint() == ""


def test_readme__is_to_commit_until_git_has_it(project: Path) -> None:
    assert "README.md" not in uncommitted(to_commit())
    Path("README.md").touch()
    assert "README.md" in commit_hint()
    git("add", "README.md")
    Path("README.md").write_text("mine")
    assert "README.md" not in uncommitted(to_commit())


def test_commit_hint__is_empty_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_hint() == ""
    Path("params.yaml").touch()
    Path("mine.txt").touch()
    assert commit_command("It's new") == "git init && git add params.yaml && git commit -m 'It'\"'\"'s new'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not in_repository()
