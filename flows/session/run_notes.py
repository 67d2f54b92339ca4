"""Notes on the flow runs of this project whose process lives, so that those of killed processes can be found.

The process of a run holds a lock on a file that is named after it. The system releases the lock when the process ends,
however this happens. Nothing here imports Prefect.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from dfkd_flows.session.prefect_settings import API_URL
from dfkd_flows.session.services import server_key
from dfkd_tasks.caching.workspace import STATE

__all__ = ["RunNote", "hold", "in_progress", "of_ended"]

_FOLDER = STATE / "flow_runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNote:
    """A run whose process lives."""

    id: UUID
    pid: int
    url: str
    """Address of its server's API; empty for a server of the user's."""


def hold(run_id: UUID) -> None:
    """Note a run on the server in use; its note is held until this process ends."""
    key = server_key()
    _FOLDER.mkdir(exist_ok=True)
    # Locked before it has its name, so that nobody takes it for the note of a process that has ended.
    new = _FOLDER / f"new-{run_id}"
    file = os.open(new, os.O_CREAT | os.O_RDWR)
    # A run that starts again with new code is the same process, and the same run.
    os.set_inheritable(file, True)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, f"{os.getpid()} {'' if key else os.environ.get(API_URL, '')}".encode())
    new.replace(_FOLDER / f"{key}{run_id}")


def of_ended() -> dict[UUID, Path]:
    """Return the notes on runs of the server in use whose process has ended, by the run's id."""
    return {run_id: path for run_id, path in _noted() if not _is_held(path)}


def in_progress() -> list[RunNote]:
    """Return the runs on the server in use whose process lives."""
    return [note for run_id, path in _noted() if _is_held(path) for note in _read(run_id, path)]


def _noted() -> Iterator[tuple[UUID, Path]]:
    key = server_key()
    for path in _FOLDER.iterdir() if _FOLDER.is_dir() else ():
        name = path.name.removeprefix(key)
        if path.name == f"{key}{name}" and _is_id(name):
            yield UUID(name), path


def _read(run_id: UUID, path: Path) -> Iterator[RunNote]:
    with suppress(OSError, ValueError):
        pid, _, url = path.read_text(encoding="utf-8").partition(" ")
        yield RunNote(id=run_id, pid=int(pid), url=url)


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _is_held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        # Another command has ended that run, or somebody has changed the folder.
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
