"""Services that run in the background for a project: what is noted of them, and whether they still run.

A process counts as the noted one if its environment names the project: a process id is used again, also after a reboot,
and the start time in seconds changes with the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

__all__ = ["MARK", "SERVICES", "Background", "end", "leftovers", "log_of", "note_of", "noted", "running"]

MARK = "DFKD_SERVICE_OF"
"""Environment variable of the services and of all processes that they start: the folder of their project."""
SERVICES = Path(".dfkd/services")
"""Folder of the notes and the logs."""

_SECONDS_TO_END = 15.0
_SECONDS_FOR_THE_REST = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A service that was started."""

    pid: int
    """Process id; 0 after its end."""
    project: str
    """Folder of the project at that time."""
    url: str
    """Address at which it answers."""
    started: str
    """Date and time of the start."""
    serves: str = ""
    """Of a worker: the pool and the server that it works for."""

    def __post_init__(self) -> None:
        """Refuse what no service has, as in a damaged note.

        Raises:
            ValueError: The process id is negative, or the address has no port.
        """
        if self.pid < 0 or not self.port:
            raise ValueError(f"no service has the process id {self.pid} and the address {self.url[:80]!r}")

    @property
    def port(self) -> int:
        """Its port."""
        return urlsplit(self.url).port or 0


def note_of(name: str) -> Path:
    """Return the file with the note on a service."""
    return SERVICES / f"{name}.json"


def log_of(name: str) -> Path:
    """Return the file with the output of a service."""
    return SERVICES / f"{name}.log"


def noted(name: str) -> Background | None:
    """Return what is noted of a service of the current project; None if nothing is."""
    if not note_of(name).is_file():
        return None
    # Imported here: every command looks for services, and the check of a note takes as long to import as all else.
    from dfkd_tasks.caching.stored import read_note

    return read_note(note_of(name), Background)


def running(name: str) -> Background | None:
    """Return the service of the current project with a name; None if it does not run."""
    service = noted(name)
    if service is None or not service.pid or not _is_here(service.project):
        return None
    with suppress(psutil.Error):
        process = psutil.Process(service.pid)
        if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == service.project:
            return service
    return None


def end(service: Background) -> None:
    """End a service and all processes below it: in order, or else by force after some seconds."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(service.pid)
        below = process.children(recursive=True)
        process.terminate()
        psutil.wait_procs([process], timeout=_SECONDS_TO_END)
        _end_all([process, *below])


def leftovers() -> None:
    """End the processes that services of this project have left behind, for example after a crash."""
    _end_all(list(_marked(str(Path.cwd()))))


def _marked(project: str) -> Iterator[psutil.Process]:
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(MARK) == project:
                yield process


def _end_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=_SECONDS_FOR_THE_REST)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_SECONDS_FOR_THE_REST)


def _is_here(project: str) -> bool:
    """Return whether a note is of this folder, which may have moved since, and not of one that it was copied from."""
    return Path(project) == Path.cwd() or not Path(project).exists()
