"""`git pull` of the project's repository without a person: forward only, and no change of the user's is touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code_file import CODE_FILE
from dfkd_tasks.dvc_project.status import LOCK
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["pull_repository"]

_SECONDS = 300
_SHOWN_FILES = 5
# Written by runs, which make them again from the caches.
_MADE = (LOCK, CODE_FILE)
_NO_QUESTIONS = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_OFF = "or set git_pull to false"


def pull_repository() -> str:
    """Fetch the branch that the project's branch follows, and go forward to it; return its commit.

    Changed files stop it, except for dvc.lock and code.json, which runs change; those of the fetched commits count.

    Returns:
        The new commit, 40 hex digits; empty if there was none.

    Raises:
        DfkdError: This is no repository, files have changed, the branches have diverged, or git fails.
    """
    branch = _branch()
    _check_unchanged()
    _git("fetch", "--quiet", why="git cannot fetch")
    if _is_ancestor("@{upstream}", "HEAD"):
        return ""
    if not _is_ancestor("HEAD", "@{upstream}"):
        raise DfkdError(
            f"The branch {branch} in {Path.cwd()} and the one that it follows have diverged, so nothing was pulled. "
            f"Join them with: git pull --rebase ({_OFF})"
        )
    _restore_made()
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
    lines = _git("status", "--porcelain", "--untracked-files=no", "-z", strip=False).split("\0")
    changed = [line[3:] for line in lines if len(line) > 3 and line[3:] not in made]
    if changed:
        more = f" and {len(changed) - _SHOWN_FILES} more" if len(changed) > _SHOWN_FILES else ""
        raise DfkdError(
            f"The repository of {Path.cwd()} has changed files, so nothing was pulled: "
            f"{', '.join(changed[:_SHOWN_FILES])}{more}. Keep them with: git commit -a ({_OFF})"
        )


def _restore_made() -> None:
    """Restore files of runs that the fetched commits change too: git would refuse to go forward."""
    incoming = _git("diff", "--name-only", "-z", "HEAD", "@{upstream}", strip=False).split("\0")
    for path in _MADE:
        if _in_repository(path) in incoming:
            _git("checkout", "--quiet", "HEAD", "--", str(path))


def _in_repository(path: Path) -> str:
    return _git("rev-parse", "--show-prefix") + path.as_posix()


def _is_ancestor(one: str, other: str) -> bool:
    return _run("merge-base", "--is-ancestor", one, other).returncode == 0


def _git(*arguments: str, why: str = "git fails", strip: bool = True) -> str:
    done = _run(*arguments)
    if done.returncode:
        reason = " ".join(without_secrets(done.stderr or done.stdout).split())
        raise DfkdError(f"{why} in {Path.cwd()}: {reason}. Correct this, {_OFF}")
    return done.stdout.strip() if strip else done.stdout


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    ssh = {"GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")}
    try:
        return subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=_SECONDS,
            env={**os.environ, **_NO_QUESTIONS, **ssh},
        )
    except FileNotFoundError:
        raise DfkdError(f"git is not installed, so nothing can be pulled. Install it, {_OFF}") from None
    except subprocess.TimeoutExpired:
        raise DfkdError(f"git {arguments[0]} did not end within {_SECONDS} s. Try it by hand, {_OFF}") from None
