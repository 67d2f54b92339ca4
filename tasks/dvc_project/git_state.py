"""What git has of the project: its repository, and the files that are not committed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from dfkd_tasks.caching.code_file import CODE_FILE, PIPELINE
from dfkd_tasks.dvc_project.status import LOCK

__all__ = [
    "COMMITTED",
    "commit_command",
    "commit_hint",
    "in_repository",
    "origin",
    "place_in_repository",
    "repository_of",
    "to_commit",
    "uncommitted",
    "unpushed",
]

COMMITTED = (
    Path(".dvc/config"),
    Path(".dvc/.gitignore"),
    Path(".dvcignore"),
    Path(".gitignore"),
    CODE_FILE,
    LOCK,
    PIPELINE,
    Path("params.yaml"),
    Path("prefect.yaml"),
)
"""The files of a project that belong into git."""

_README = Path("README.md")


def to_commit() -> tuple[Path, ...]:
    """Return the files of a project that belong into git, with its README until git has that: then it is the user's."""
    return COMMITTED if _git("ls-files", "--", str(_README)) else (*COMMITTED, _README)


def commit_hint() -> str:
    """Return how to commit what belongs to the results, as long as git has no dvc.lock; empty without a repository."""
    if not in_repository() or _git("ls-files", "--", str(LOCK)):
        return ""
    command = commit_command("First results")
    return f"git has none of these results. Commit what belongs to them: {command} (for colleagues: dfkd share)"


def commit_command(message: str) -> str:
    """Return the command that commits those files of the project that git lacks, and makes a repository for them."""
    if in_repository():
        start, missing = "", [name for name, is_ignored in uncommitted(to_commit()).items() if not is_ignored]
    else:
        start, missing = "git init && ", [str(path) for path in to_commit() if path.exists()]
    return f"{start}git add {' '.join(map(quote, missing))} && git commit -m {quote(message)}"


def repository_of(folder: Path) -> Path | None:
    """Return the folder of the git repository that a folder is in, without git; None if it is in none."""
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)


def in_repository() -> bool:
    """Return whether the current folder is in a git repository with files, and git is installed."""
    return _git("rev-parse", "--is-inside-work-tree") == "true"


def place_in_repository() -> str:
    """Return the path of the current folder in its repository, like `sub/project`; empty for the repository's own."""
    return _git("rev-parse", "--show-prefix").rstrip("/")


def uncommitted(files: Iterable[Path]) -> dict[str, bool]:
    """Return those of the files in the current folder that git does not have as they are.

    Args:
        files: Paths within the repository. A path that does not exist is left out, unless git has it.

    Returns:
        Whether git ignores the file, by its path.
    """
    names = [str(file) for file in files]
    listed = _git("status", "--porcelain", "-z", "--untracked-files=all", "--ignored", "--no-renames", "--", *names)
    place = place_in_repository()
    found = [(entry[:2], entry[3:].removeprefix(f"{place}/" if place else "")) for entry in listed.split("\0") if entry]
    # git names an ignored folder in place of the files in it.
    return {
        name: code == "!!"
        for name in names
        for code, path in found
        if name == path or (path.endswith("/") and name.startswith(path))
    }


def origin() -> str:
    """Return the address that a clone is made from; empty if the repository has none."""
    return _git("remote", "get-url", "origin")


def unpushed() -> bool:
    """Return whether there are commits that the branch's remote does not have, or the branch has no remote."""
    return _git("rev-list", "--count", "@{upstream}..HEAD") != "0"


def _git(*arguments: str) -> str:
    """Return what git prints, empty if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
        )
    except OSError:
        return ""
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""
