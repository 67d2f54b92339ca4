"""The nightly deployment, as prefect.yaml declares it: a server, a work pool, a worker and one run of the whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

SECONDS_TO_START = 120
SECONDS_TO_COMPLETE = 420


@pytest.fixture
def workspace(make_workspace: Any, small: dict[str, Any]) -> Any:
    made = make_workspace("schedule")
    made.environment.update(
        {
            "PREFECT_HOME": str(made.path / ".dfkd" / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
        }
    )
    (made.path / ".dfkd" / "prefect").mkdir(parents=True)
    return made


@pytest.fixture
def server(workspace: Any) -> Iterator[None]:
    process, workspace.environment["PREFECT_API_URL"] = _start_server(workspace)
    yield
    _end(process)


def _start_server(workspace: Any) -> tuple[subprocess.Popen[str], str]:
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = workspace.start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
    url = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return process, url
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
    _end(process)
    raise AssertionError("the server did not start")


def _end(process: subprocess.Popen[str]) -> str:
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nightly_deployment__completes_on_a_worker(workspace: Any, server: None, small: dict[str, Any]) -> None:
    workspace.run("prefect", "work-pool", "create", "dfkd", "--type", "process")
    workspace.run("prefect", "deploy", "--all")
    overrides = json.dumps([f"{name}={value}" for name, value in small.items()])
    worker = workspace.start("prefect", "worker", "start", "--pool", "dfkd")
    try:
        workspace.run(
            "prefect", "deployment", "run", "pipeline/nightly", "--param", f"overrides={overrides}",
            "--watch", "--watch-timeout", str(SECONDS_TO_COMPLETE),
        )  # fmt: skip
    finally:
        output = _end(worker)
        print(output)  # noqa: T201
    assert "Completed" in output, output
    assert workspace.read_json("metrics/default.json")["student"]["num_parameters"] == 35_820
    assert workspace.read_json(".dfkd/students/default/published.json")["model"] == "dfkd-student-digits"
