"""DVC's default remote: its name for messages, and whether results can be copied there."""

from __future__ import annotations

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.workspace import TEACHERS
from dfkd_tasks.caching.writing import write_fault
from dfkd_tasks.dvc_project.files import default_remote, folder_of, is_folder
from dfkd_tasks.dvc_project.status import LOCK, run_dvc
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["check_place", "check_remote", "described_remote", "is_new_clone", "push_results", "set_default_remote"]

_SECONDS_TO_ANSWER = 30


def described_remote() -> str:
    """Return the name and the address of the default remote, without passwords."""
    name, url = default_remote()
    return f"{name}, {without_secrets(url)}" if name else "no default remote"


def check_remote() -> None:
    """Check that files can be written into a default remote that is no folder: S3, SSH, HTTP and others.

    `storage_faults` checks folders, within milliseconds.

    Raises:
        DfkdError: It does not answer in time, refuses the user, or needs a package that is missing.
    """
    name, url = default_remote()
    if url and not is_folder(url):
        _check(name, url, f"set another one with: dvc remote modify {name} url PATH")


def check_place(name: str, url: str) -> None:
    """Check that files can be written into a remote that need not be the default one yet.

    Args:
        name: Its name; other options that it has already hold.
        url: Its address; of a folder, an absolute path.

    Raises:
        DfkdError: As `check_remote`, also for a folder.
    """
    remedy = "name another place: dfkd share URL --remote NAME"
    if not is_folder(url):
        _check(name, url, remedy, name, url)
    elif fault := write_fault(folder_of(url)):
        raise DfkdError(f"The folder {folder_of(url)} cannot be written ({fault}). Change its rights, or {remedy}")


def _check(name: str, url: str, remedy: str, *arguments: str) -> None:
    try:
        run_dvc("check", *arguments, timeout=_SECONDS_TO_ANSWER)
    except DfkdError as error:
        why = str(error).removeprefix("dvc check failed: ").removeprefix("dvc: ").strip().rstrip(".")
        raise DfkdError(
            f"DVC's remote {name!r} at {without_secrets(url)} cannot be written: {' '.join(why.split())}. Correct "
            f"this, or {remedy}"
        ) from error


def set_default_remote(name: str, url: str) -> None:
    """Write a remote and its name as the default one into .dvc/config; other remotes and options stay."""
    run_dvc("remote", name, str(folder_of(url)) if is_folder(url) else url)


def push_results(name: str) -> int:
    """Copy the results to a remote, including the run cache, and return how many files it lacked."""
    return int(run_dvc("push", name).split()[-1])


def is_new_clone() -> bool:
    """Return whether the project has results in dvc.lock, and none of their files."""
    return LOCK.is_file() and not TEACHERS.parent.exists()
