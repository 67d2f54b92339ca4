"""`git pull` of the project's repository without a person: forward only, and no change of the user's is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code_file import CODE_FILE
from dfkd_tasks.dvc_project.git_state import place_in_repository
from dfkd_tasks.dvc_project.status import LOCK
from dfkd_tasks.processes.lifeline import kill_below
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["pull_repository"]

_SECONDS = 300
_SHOWN_FILES = 5
# Written by runs, which make them again from the caches.
_MADE = (LOCK, CODE_FILE)
_NO_QUESTIONS = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_OFF = "or set git_pull to false"


def pull_repository(seconds: float = _SECONDS) -> str:
    """Fetch the branch that the project's branch follows, and go forward to it; return its commit.

    Changed files stop it, except for dvc.lock and code.json, which runs change; those of the fetched commits count.

    Args:
        seconds: Time after which the fetch is ended with all that it has started.

    Returns:
        The new commit, 40 hex digits; empty if there was none.

    Raises:
        DfkdError: This is no repository, files have changed, the branches have diverged, or git fails.
    """
    branch = _branch()
    _check_unchanged()
    _git(*_quiet_ssh(), "fetch", "--quiet", why="git cannot fetch", seconds=seconds)
    if _is_ancestor("@{upstream}", "HEAD"):
        return ""
    if not _is_ancestor("HEAD", "@{upstream}"):
        raise DfkdError(
            f"The branch {branch} in {Path.cwd()} and the one that it follows have diverged, so nothing was pulled. "
            f"Join them with: git pull --rebase ({_OFF})"
        )
    with _without_made():
        _git("merge", "--quiet", "--ff-only", "@{upstream}", why="git cannot go forward")
    return _git("rev-parse", "HEAD")


def _branch() -> str:
    """Return the name of the current branch, which must follow another one."""
    if _run("rev-parse", "--git-dir").returncode:
        raise DfkdError(f"{Path.cwd()} is in no git repository, so nothing can be pulled. Set git_pull to false")
    branch = _run("symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip()
    if not branch:
        raise DfkdError(f"{Path.cwd()} is on no branch, so nothing can be pulled. Choose one: git switch NAME ({_OFF})")
    if _run("rev-parse", "--quiet", "--verify", "@{upstream}").returncode:
        raise DfkdError(
            f"The branch {branch} in {Path.cwd()} follows no branch of a remote, so nothing can be pulled. Set one: "
            f"git branch --set-upstream-to=origin/{branch} ({_OFF})"
        )
    return branch


def _check_unchanged() -> None:
    made = {_in_repository(path) for path in _MADE}
    lines = _git("status", "--porcelain", "--untracked-files=no", "--no-renames", "-z", strip=False).split("\0")
    changed = [line[3:] for line in lines if len(line) > 3 and line[3:] not in made]
    if changed:
        more = f" and {len(changed) - _SHOWN_FILES} more" if len(changed) > _SHOWN_FILES else ""
        raise DfkdError(
            f"The repository of {Path.cwd()} has changed files, so nothing was pulled: "
            f"{', '.join(changed[:_SHOWN_FILES])}{more}. Keep them with: git commit -a ({_OFF})"
        )


@contextmanager
def _without_made() -> Iterator[None]:
    """Put files of runs that the fetched commits change too out of git's way; return them if the block fails."""
    incoming = _git("diff", "--name-only", "--no-renames", "-z", "HEAD", "@{upstream}", strip=False).split("\0")
    made = [path for path in _MADE if _in_repository(path) in incoming]
    before = {path: path.read_bytes() for path in made if path.is_file()}
    for path in made:
        _put_back(path)
    try:
        yield
    except DfkdError:
        for path, content in before.items():
            path.write_bytes(content)
        raise


def _put_back(path: Path) -> None:
    """Give a file the content of the current commit, which may not have it."""
    _git("reset", "--quiet", "HEAD", "--", str(path))
    if _run("cat-file", "-e", f"HEAD:{_in_repository(path)}").returncode == 0:
        _git("checkout", "--quiet", "HEAD", "--", str(path))
    else:
        path.unlink(missing_ok=True)


def _in_repository(path: Path) -> str:
    return Path(place_in_repository(), path).as_posix()


def _is_ancestor(one: str, other: str) -> bool:
    return _run("merge-base", "--is-ancestor", one, other).returncode == 0


def _git(*arguments: str, why: str = "git fails", strip: bool = True, seconds: float = _SECONDS) -> str:
    done = _run(*arguments, seconds=seconds)
    if done.returncode:
        reason = " ".join(without_secrets(done.stderr or done.stdout).split())
        raise DfkdError(f"{why} in {Path.cwd()}: {reason}. Correct this, {_OFF}")
    return done.stdout.strip() if strip else done.stdout


def _run(*arguments: str, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    try:
        process = subprocess.Popen(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **_NO_QUESTIONS},
        )
    except FileNotFoundError:
        raise DfkdError(f"git is not installed, so nothing can be pulled. Install it, {_OFF}") from None
    with process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Such as ssh, which would wait on.
            kill_below(process.pid)
            process.kill()
            raise DfkdError(
                f"git in {Path.cwd()} did not end within {seconds:g} s. Try it by hand: git fetch ({_OFF})"
            ) from None
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def _quiet_ssh() -> list[str]:
    """Return git's option for an ssh that has no questions, unless the user has set a command of ssh."""
    is_set = "GIT_SSH" in os.environ or _run("config", "core.sshCommand").returncode == 0
    return [] if is_set else ["-c", "core.sshCommand=ssh -o BatchMode=yes"]
