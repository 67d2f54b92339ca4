"""Start of one service in the background, and the wait until it answers."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from dfkd_core.common.digests import write_json
from dfkd_core.errors import DfkdError
from dfkd_flows.background.kinds import HOST, Kind
from dfkd_flows.session.prefect_settings import API_URL
from dfkd_flows.session.server import OWN_URL, answers
from dfkd_tasks.processes.background import MARK, SERVICES, Background, end, log_of, note_of, noted, running

__all__ = ["Starting", "start"]

_SECONDS_TO_START = 300
_SECONDS_BETWEEN_LOOKS = 0.1
_SHOWN_LINES = 15


@dataclass(frozen=True, slots=True)
class Starting:
    """A service that runs, or has just been started."""

    kind: Kind
    service: Background
    process: subprocess.Popen[bytes] | None
    """None if it ran before, and answered."""

    def wait(self) -> None:
        """Wait until the service answers.

        Raises:
            DfkdError: It ended or does not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        while not self._is_ready():
            status = self.process.poll() if self.process else None
            if status is not None:
                raise DfkdError(self._failed(f"ended with status {status}"))
            if time.monotonic() > deadline:
                raise DfkdError(self._failed(f"does not answer after {_SECONDS_TO_START} s"))
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _is_ready(self) -> bool:
        if self.process is None:
            return True
        # A worker answers before the server knows it.
        return answers(self.service.url) and (not self.kind.serves or "started!" in _log(self.kind.name))

    def _failed(self, how: str) -> str:
        shown = "\n".join(_log(self.kind.name).strip().splitlines()[-_SHOWN_LINES:])
        return f"{self.kind.title} {how}. Its log, {log_of(self.kind.name)}, ends with:\n{shown}"


def _log(name: str) -> str:
    try:
        return log_of(name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        # Somebody has tidied up.
        return ""


def start(kind: Kind) -> Starting:
    """Start a service, unless it runs; do not wait for it. One that hangs or works for another server is ended first.

    It gets the port that it had before if this is free, so links stay the same.
    """
    if found := running(kind.name):
        if found.serves == kind.serves and answers(found.url):
            return Starting(kind, found, None)
        end(found)
    before = noted(kind.name)
    port = _free_port(before.port if before else 0)
    project = str(Path.cwd())
    SERVICES.mkdir(parents=True, exist_ok=True)
    with log_of(kind.name).open("wb") as log:
        process = subprocess.Popen(
            kind.command(port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(project) | kind.variables(port),
            # A session of its own outlives the terminal.
            start_new_session=True,
        )
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    service = Background(pid=process.pid, project=project, url=kind.url(port), started=started, serves=kind.serves)
    write_json(note_of(kind.name), asdict(service))
    return Starting(kind, service, process)


def _environment(project: str) -> dict[str, str]:
    """Return this environment without the address of a server that ends with this command."""
    own = {name: value for name, value in os.environ.items() if name not in (API_URL, OWN_URL)}
    return own | {MARK: project}


def _free_port(wanted: int) -> int:
    """Return a port if it is free, any free one otherwise."""
    try:
        return _bound(wanted)
    except OSError:
        return _bound(0)


def _bound(port: int) -> int:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])
