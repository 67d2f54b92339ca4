"""`git pull` without a person, in real repositories."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.dvc_project.git_pull import pull_repository


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", name)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def colleague(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a colleague's clone; the current folder is another clone of the same repository."""
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "shared.git")
    for name in ("colleague", "own"):
        git(tmp_path, "clone", "-q", "shared.git", name)
    first = tmp_path / "colleague"
    git(first, "switch", "-q", "-c", "main")
    for name in ("params.yaml", "dvc.lock"):
        commit(first, name, "1\n")
    git(first, "push", "-q", "-u", "origin", "main")
    git(tmp_path / "own", "pull", "-q")
    monkeypatch.chdir(tmp_path / "own")
    return first


def refusal() -> str:
    before = git(Path.cwd(), "rev-parse", "HEAD")
    with pytest.raises(DfkdError) as caught:
        pull_repository()
    assert git(Path.cwd(), "rev-parse", "HEAD") == before
    return str(caught.value)


def test_pull__goes_forward_to_the_new_commit_once(colleague: Path) -> None:
    made = commit(colleague, "params.yaml", "2\n")
    git(colleague, "push", "-q")
    assert pull_repository() == made
    assert Path("params.yaml").read_text() == "2\n"
    assert pull_repository() == ""


def test_own_commits_that_are_not_pushed__stay(colleague: Path) -> None:
    made = commit(Path.cwd(), "params.yaml", "3\n")
    assert pull_repository() == ""
    assert git(Path.cwd(), "rev-parse", "HEAD") == made


@pytest.mark.parametrize("staged", [True, False])
def test_changed_file__stops_it_and_stays(colleague: Path, staged: bool) -> None:
    commit(colleague, "params.yaml", "2\n")
    git(colleague, "push", "-q")
    Path("params.yaml").write_text("mine\n")
    if staged:
        git(Path.cwd(), "add", "-A")
    assert "has changed files, so nothing was pulled: params.yaml. Keep them with: git commit -a" in refusal()
    assert Path("params.yaml").read_text() == "mine\n"


def test_lock_of_a_run__gives_way_to_the_pulled_one_alone(colleague: Path) -> None:
    Path("dvc.lock").write_text("of the night\n")
    commit(colleague, "params.yaml", "2\n")
    git(colleague, "push", "-q")
    assert pull_repository()
    assert Path("dvc.lock").read_text() == "of the night\n"
    commit(colleague, "dvc.lock", "2\n")
    git(colleague, "push", "-q")
    assert pull_repository()
    assert Path("dvc.lock").read_text() == "2\n"


def test_project_in_a_subfolder__has_its_own_lock(colleague: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (colleague / "net").mkdir()
    commit(colleague, "net/dvc.lock", "1\n")
    git(colleague, "push", "-q")
    pull_repository()
    monkeypatch.chdir("net")
    Path("dvc.lock").write_text("of the night\n")
    commit(colleague, "net/dvc.lock", "2\n")
    git(colleague, "push", "-q")
    assert pull_repository()
    assert Path("dvc.lock").read_text() == "2\n"


def test_untracked_file__stops_it_only_if_it_would_be_overwritten(colleague: Path) -> None:
    Path("notes.txt").write_text("mine\n")
    commit(colleague, "params.yaml", "2\n")
    git(colleague, "push", "-q")
    assert pull_repository()
    commit(colleague, "notes.txt", "theirs\n")
    git(colleague, "push", "-q")
    assert "notes.txt" in refusal()
    assert Path("notes.txt").read_text() == "mine\n"


@pytest.mark.parametrize("staged", [True, False])
def test_lock_that_git_does_not_have_yet__gives_way_to_the_pulled_one(colleague: Path, staged: bool) -> None:
    Path("code.json").write_text("of the night\n")
    if staged:
        git(Path.cwd(), "add", "code.json")
    commit(colleague, "code.json", "theirs\n")
    git(colleague, "push", "-q")
    assert pull_repository()
    assert Path("code.json").read_text() == "theirs\n"
    assert git(Path.cwd(), "status", "--porcelain") == ""


def test_lock_of_a_run__stays_if_git_cannot_go_forward(colleague: Path) -> None:
    Path("dvc.lock").write_text("of the night\n")
    Path("notes.txt").write_text("mine\n")
    commit(colleague, "dvc.lock", "2\n")
    commit(colleague, "notes.txt", "theirs\n")
    git(colleague, "push", "-q")
    assert "notes.txt" in refusal()
    assert Path("dvc.lock").read_text() == "of the night\n"


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """Return a program in place of ssh that never answers, for the remote of the current repository."""
    program = tmp_path / "ssh.sh"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path / 'pid'}\nsleep 60\n")
    program.chmod(0o755)
    git(Path.cwd(), "remote", "set-url", "origin", "ssh://git.invalid/shared.git")
    return program


def is_running(pid: int) -> bool:
    """A process that has ended stays in the list until its parent, which may be the machine's first one, asks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_remote_that_hangs__is_left_with_all_that_git_has_started(colleague: Path, ssh: Path) -> None:
    """git's own setting of ssh counts."""
    git(Path.cwd(), "config", "core.sshCommand", str(ssh))
    start = time.monotonic()
    with pytest.raises(DfkdError, match=r"did not end within 1 s\. Try it by hand: git fetch"):
        pull_repository(seconds=1)
    assert time.monotonic() - start < 10
    pid = int((ssh.parent / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_diverged_branches__stop_it(colleague: Path) -> None:
    commit(colleague, "params.yaml", "2\n")
    git(colleague, "push", "-q")
    commit(Path.cwd(), "other.txt", "mine\n")
    assert "have diverged, so nothing was pulled. Join them with: git pull --rebase" in refusal()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["switch", "-q", "-c", "other"], "follows no branch of a remote"),
        (["switch", "-q", "--detach"], "is on no branch"),
        (["remote", "set-url", "origin", "/nowhere"], "git cannot fetch"),
    ],
)
def test_branch_that_cannot_be_pulled__is_named(colleague: Path, command: list[str], text: str) -> None:
    git(Path.cwd(), *command)
    assert text in refusal()


def test_no_repository__is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DfkdError, match="is in no git repository, so nothing can be pulled"):
        pull_repository()
