"""The Prefect server of a command: that of the user's settings, or one on a free loopback port that ends with it."""

from __future__ import annotations

import atexit
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dfkd_core.errors import DfkdError
from dfkd_flows.session.prefect_settings import API_URL, Address, find_address
from dfkd_tasks.processes.endings import count_oom_kills, ending, signal_of
from dfkd_tasks.processes.lifeline import descendants, end_with, kill
from dfkd_tasks.records.foreign import without_secrets

__all__ = [
    "OWN_URL",
    "NamedServer",
    "Server",
    "ServerProcess",
    "answers",
    "named_server",
    "needing_server",
    "start_server",
]

OWN_URL = "DFKD_PREFECT_URL"
"""Environment variable with the address of the server that a command has started for itself."""

_HOST = "127.0.0.1"
_SECONDS_TO_START = 300
_SECONDS_BETWEEN_LOOKS = 0.5
_LOG = Path(".dfkd/server.log")


class Server(Protocol):
    """A server that a command uses."""

    url: str
    """Address of its API."""

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            DfkdError: It ended or did not answer in time.
        """

    def ending(self) -> str:
        """Return sentences on the end of the server; empty while it runs."""


class NamedServer:
    """A server that runs already: one of the user's, or that of the command which started this process."""

    def __init__(self, address: Address) -> None:
        """Keep its address."""
        self.url = address.url.rstrip("/")
        self._address = address

    def wait(self) -> None:
        """Check that the server answers.

        Raises:
            DfkdError: It does not.
        """
        if not answers(self.url):
            raise DfkdError(self.fault())

    def fault(self) -> str:
        """Return a sentence on a server that does not answer."""
        return f"No Prefect server answers at {self.described()}. Start it, or {self.undo()}"

    def described(self) -> str:
        """Return its address without passwords, and where it is set."""
        url, source = without_secrets(self.url), self._address.source
        return f"{source}={url}" if source == API_URL else f"{url} ({source})"

    def undo(self) -> str:
        """Return how to let each run start its own server."""
        return f"let each run start its own: {self._address.undo}"

    def ending(self) -> str:
        """Return an empty text: only its owner knows."""
        return ""


class ServerProcess:
    """A server that starts in the background while the command goes through its imports."""

    def __init__(self) -> None:
        """Start it and set PREFECT_API_URL, which Prefect reads when it is imported."""
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port = probe.getsockname()[1]
        self.url = f"http://{_HOST}:{port}/api"
        self._oom_kills = count_oom_kills()
        os.environ[API_URL] = os.environ[OWN_URL] = self.url
        _LOG.parent.mkdir(parents=True, exist_ok=True)
        with _LOG.open("wb") as log:
            command = [sys.executable, "-m", "dfkd_flows.session.server", str(port), str(os.getpid())]
            # In its own session the server does not receive Ctrl-C, so the flow can still report its end to it.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        # Registered before Prefect is imported, so it runs after Prefect's own handlers.
        atexit.register(self._process.terminate)

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            DfkdError: It ended or did not answer in time.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        while not answers(self.url):
            if reason := self.ending():
                raise DfkdError(reason)
            if time.monotonic() > deadline:
                raise DfkdError(f"Prefect's server did not start within {_SECONDS_TO_START} s. See {_LOG}")
            time.sleep(0.05)

    def ending(self) -> str:
        """Return sentences on the end of the server; empty while it runs."""
        status = self._process.poll()
        if status is None:
            return ""
        if number := signal_of(status):
            return ending("Prefect's server", number, self._oom_kills)
        last = _LOG.read_text(errors="replace").strip().splitlines()[-1:]
        return f"Prefect's server ended with {' '.join(last)}. Continue with the same command; the log is {_LOG}"


def named_server() -> NamedServer | None:
    """Return the server that the user's settings name, None if a run starts its own."""
    found = find_address()
    return NamedServer(found) if found and found.url != os.environ.get(OWN_URL) else None


def start_server() -> Server:
    """Start a server, unless one is named. Call it before Prefect is imported.

    The server ends with this process.
    """
    found = find_address()
    if found is None:
        return ServerProcess()
    # For the processes that this one starts.
    os.environ[API_URL] = found.url
    return NamedServer(found)


@contextmanager
def needing_server(server: Server) -> Iterator[None]:
    """End the command with the reason if the server ends during the block, as Prefect would try for minutes.

    Args:
        server: Result of `start_server`.

    Raises:
        DfkdError: The block failed, and a server that the user runs does not answer.
    """
    try:
        with _watched(server):
            yield
    except Exception as error:
        if answers(server.url):
            raise
        raise DfkdError(
            f"Prefect's server at {without_secrets(server.url)} has ended. Start it, then continue with the same "
            "command"
        ) from error


@contextmanager
def _watched(server: Server) -> Iterator[None]:
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_SECONDS_BETWEEN_LOOKS):
            if reason := server.ending():
                sys.stderr.write(f"dfkd: {reason}\n")
                kill(descendants())
                os._exit(1)

    threading.Thread(target=watch, name="server", daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def answers(url: str) -> bool:
    """Return whether a Prefect server answers at `url` within two seconds."""
    try:
        # Needs no password, and urllib takes none in an address.
        with urllib.request.urlopen(f"{without_secrets(url)}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _serve(port: int, owner: int) -> None:
    import psutil

    from dfkd_flows.session.environment import prepare_environment

    end_with([psutil.Process(owner)])
    prepare_environment(Path.cwd())
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(), host=_HOST, port=port, log_level="error", timeout_graceful_shutdown=2)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
