"""DVC's default remote: its name for messages, and whether results can be copied there."""

from __future__ import annotations

from dfkd_core.errors import DfkdError
from dfkd_tasks.dvc_project.files import default_remote, is_folder
from dfkd_tasks.dvc_project.status import run_dvc
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["check_remote", "described_remote"]

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
    if not url or is_folder(url):
        return
    try:
        run_dvc("check", timeout=_SECONDS_TO_ANSWER)
    except DfkdError as error:
        why = str(error).removeprefix("dvc check failed: ").removeprefix("dvc: ").strip().rstrip(".")
        raise DfkdError(
            f"DVC's remote {name!r} at {without_secrets(url)} cannot be written: {' '.join(why.split())}. Correct "
            f"this, or set another one with: dvc remote modify {name} url PATH"
        ) from error
