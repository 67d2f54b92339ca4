"""Prefect's own server on a free loopback port, for as long as one command runs."""

from __future__ import annotations

import atexit
import http.client
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from dfkd_core.errors import DfkdError

__all__ = ["API_URL", "ServerProcess", "answers", "await_server", "start_server"]

API_URL = "PREFECT_API_URL"
"""Environment variable that names a server of the user's."""

_HOST = "127.0.0.1"
_SECONDS_TO_START = 120
_LOG = Path(".dfkd/server.log")


class ServerProcess:
    """A server that starts in the background, so that its seconds can be used for something else."""

    def __init__(self) -> None:
        """Start it and name it in PREFECT_API_URL, which Prefect reads when it is imported."""
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port = probe.getsockname()[1]
        self.url = f"http://{_HOST}:{port}/api"
        os.environ[API_URL] = self.url
        _LOG.parent.mkdir(parents=True, exist_ok=True)
        with _LOG.open("wb") as log:
            command = [sys.executable, "-m", "flows.session.server", str(port), str(os.getpid())]
            # A session of its own keeps Ctrl-C from stopping the server before the flow has told it how it ended.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        # Runs after Prefect's own last words, as it is registered before Prefect is imported.
        atexit.register(self._process.terminate)

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            DfkdError: It ended or did not answer in time.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        while not answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = _LOG.read_text(errors="replace").strip().splitlines()[-1:]
                raise DfkdError(f"Prefect's server did not start at {self.url}: {' '.join(last)}. See {_LOG}")
            time.sleep(0.05)


def start_server() -> ServerProcess | None:
    """Start a server of our own, unless PREFECT_API_URL names one already; before Prefect is imported.

    It ends with this process.
    """
    return None if os.environ.get(API_URL) else ServerProcess()


def await_server(server: ServerProcess | None) -> None:
    """Return when the server answers.

    Args:
        server: What `start_server` gave.

    Raises:
        DfkdError: It does not answer.
    """
    if server:
        server.wait()
        return
    url = os.environ[API_URL]
    if not answers(url):
        raise DfkdError(f"No Prefect server answers at {API_URL}={url}. Start it, or unset {API_URL}")


def answers(url: str) -> bool:
    """Tell whether a server of Prefect or MLflow answers at `url` within two seconds."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _serve(port: int, owner: int) -> None:
    import psutil
    import uvicorn

    from flows.session.environment import prepare_environment
    from flows.session.lifeline import end_with

    prepare_environment(Path.cwd())
    end_with([psutil.Process(owner)])
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(), host=_HOST, port=port, log_level="error", timeout_graceful_shutdown=2)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
