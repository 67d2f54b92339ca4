"""A Prefect server on a free loopback port that runs as long as one command."""

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

from dfkd_core.errors import DfkdError
from dfkd_tasks.processes.endings import count_oom_kills, ending, signal_of
from dfkd_tasks.processes.lifeline import descendants, end_with, kill

__all__ = ["API_URL", "ServerProcess", "answers", "await_server", "needing_server", "start_server"]

API_URL = "PREFECT_API_URL"
"""Environment variable with the address of a server that the user runs."""

_HOST = "127.0.0.1"
_SECONDS_TO_START = 300
_SECONDS_BETWEEN_LOOKS = 0.5
_LOG = Path(".dfkd/server.log")


class ServerProcess:
    """A server that starts in the background while the command goes through its imports."""

    def __init__(self) -> None:
        """Start it and set PREFECT_API_URL, which Prefect reads when it is imported."""
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port = probe.getsockname()[1]
        self.url = f"http://{_HOST}:{port}/api"
        self._oom_kills = count_oom_kills()
        os.environ[API_URL] = self.url
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


def start_server() -> ServerProcess | None:
    """Start a server, unless PREFECT_API_URL is set. Call it before Prefect is imported.

    The server ends with this process.
    """
    return None if os.environ.get(API_URL) else ServerProcess()


def await_server(server: ServerProcess | None) -> None:
    """Wait until the server answers.

    Args:
        server: Result of `start_server`.

    Raises:
        DfkdError: It does not answer.
    """
    if server:
        server.wait()
        return
    url = os.environ[API_URL]
    if not answers(url):
        raise DfkdError(f"No Prefect server answers at {API_URL}={url}. Start it, or unset {API_URL}")


@contextmanager
def needing_server(server: ServerProcess | None) -> Iterator[None]:
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
        url = os.environ[API_URL]
        if answers(url):
            raise
        raise DfkdError(
            f"Prefect's server at {url} has ended. Start it, then continue with the same command"
        ) from error


@contextmanager
def _watched(server: ServerProcess | None) -> Iterator[None]:
    finished = threading.Event()

    def watch() -> None:
        while server and not finished.wait(_SECONDS_BETWEEN_LOOKS):
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
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
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
