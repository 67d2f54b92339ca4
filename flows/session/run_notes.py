"""Notes on the flow runs of this project whose process lives, so that those of killed processes can be found.

The process of a run holds a lock on a file that is named after it. The system releases the lock when the process ends,
however this happens. Nothing here imports Prefect.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import UUID

from dfkd_flows.session.services import server_key
from dfkd_tasks.caching.workspace import STATE

__all__ = ["hold", "of_ended"]

_FOLDER = STATE / "flow_runs"


def hold(run_id: UUID) -> None:
    """Note a run on the server in use; its note is held until this process ends."""
    _FOLDER.mkdir(exist_ok=True)
    # Locked before it has its name, so that nobody takes it for the note of a process that has ended.
    new = _FOLDER / f"new-{run_id}"
    file = os.open(new, os.O_CREAT | os.O_RDWR)
    # A run that starts again with new code is the same process, and the same run.
    os.set_inheritable(file, True)
    fcntl.flock(file, fcntl.LOCK_EX)
    new.replace(_FOLDER / f"{server_key()}{run_id}")


def of_ended() -> dict[UUID, Path]:
    """Return the notes on runs of the server in use whose process has ended, by the run's id."""
    key, found = server_key(), {}
    for path in _FOLDER.iterdir() if _FOLDER.is_dir() else ():
        name = path.name.removeprefix(key)
        if path.name == f"{key}{name}" and _is_id(name) and not _is_held(path):
            found[UUID(name)] = path
    return found


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _is_held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        # Another command has ended that run.
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
