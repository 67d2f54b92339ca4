"""`dfkd up` and `dfkd down` without the services themselves; tests/flows/test_schedule.py starts these."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dfkd_core.errors import DfkdError
from dfkd_flows.background.kinds import Kind, mlflow_page, prefect_server, prefect_worker
from dfkd_flows.background.runs import ended_runs
from dfkd_flows.background.starting import Starting, start
from dfkd_flows.cli import app
from dfkd_flows.session.prefect_settings import find_address, users_address
from dfkd_tasks.processes.background import end, log_of, note_of, running

FILES = Kind(
    name="prefect",
    title="The file server",
    # Answers at /health, a file.
    arguments=("-m", "http.server", "--bind", "127.0.0.1", "{port}"),
)


def stop(started: Starting) -> None:
    end(started.service)
    started.process.wait()


def test_down__without_services_says_how_to_start_them(project: Path) -> None:
    found = CliRunner().invoke(app, ["down"])
    assert found.exit_code == 0, found.output
    assert "Nothing runs in the background for this project. Start with: dfkd up" in found.output


def test_up__outside_of_a_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("up", "down", "deploy"):
        found = CliRunner().invoke(app, [command])
        assert found.exit_code == 2
        assert "is in no project" in found.output
    assert not any(tmp_path.iterdir())


def test_up__starts_nothing_if_the_users_server_is_away(
    project: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed_port}/api")
    found = CliRunner().invoke(app, ["up"])
    assert found.exit_code == 1
    assert f"No Prefect server answers at PREFECT_API_URL=http://127.0.0.1:{closed_port}/api" in found.output
    assert [running(name) for name in ("prefect", "worker", "mlflow")] == [None, None, None]


@pytest.mark.parametrize("kind", [prefect_server(), mlflow_page(), prefect_worker("dfkd", "http://127.0.0.1:1/api")])
def test_services__listen_on_loopback_alone(kind: Kind) -> None:
    hosts = {*kind.command(4711), *kind.variables(4711).values()}
    assert "127.0.0.1" in hosts
    assert kind.url(4711).startswith("http://127.0.0.1:4711")


def test_started_service__is_found_used_and_keeps_its_port(project: Path) -> None:
    Path("health").touch()
    first = start(FILES)
    try:
        first.wait()
        assert running("prefect") == first.service
        assert find_address().url == first.service.url
        assert users_address() is None
        again = start(FILES)
        assert again.process is None
        assert again.service == first.service
    finally:
        stop(first)
    assert running("prefect") is None
    assert find_address() is None
    second = start(FILES)
    stop(second)
    assert second.service.url == first.service.url


@pytest.mark.parametrize(
    "changes",
    [{"pid": -1}, {"pid": 10**30}, {"pid": 1}, {"url": "http://127.0.0.1:port/api"}, {"url": "http://127.0.0.1"}],
)
def test_damaged_note__is_written_again(project: Path, changes: dict[str, Any]) -> None:
    Path("health").touch()
    note = note_of("prefect")
    note.parent.mkdir(parents=True)
    whole = {"pid": os.getpid(), "project": str(project), "url": "http://127.0.0.1:1/api", "started": ""}
    note.write_text(json.dumps(whole | changes))
    assert running("prefect") is None
    started = start(FILES)
    try:
        assert running("prefect") == started.service
    finally:
        stop(started)


def test_running_worker__needs_its_log_no_more(project: Path) -> None:
    Path("health").touch()
    program = (
        "import http.server as h; print('started!'); h.test(h.SimpleHTTPRequestHandler, bind='127.0.0.1', port={port})"
    )
    worker = replace(FILES, name="worker", arguments=("-c", program), serves="dfkd at http://127.0.0.1:1/api")
    started = start(worker)
    try:
        started.wait()
        log_of("worker").unlink()
        start(worker).wait()
    finally:
        stop(started)


def test_service_that_fails__is_reported_with_the_end_of_its_log(project: Path) -> None:
    broken = replace(FILES, arguments=("-c", "raise SystemExit('no room at {port}')"))
    with pytest.raises(DfkdError, match=r"(?s)The file server ended with status 1.*prefect\.log, ends with:\nno room"):
        start(broken).wait()


def test_users_server__goes_before_that_of_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = start(replace(FILES, arguments=("-c", "import time; time.sleep(60)")))
    try:
        monkeypatch.setenv("PREFECT_API_URL", "http://other.example/api")
        assert find_address().url == "http://other.example/api"
        os.environ["PREFECT_API_URL"] = started.service.url
        assert users_address() is None
        assert find_address().undo == "dfkd down"
    finally:
        stop(started)


PREFECT = """
import http.server as h, json
class Handler(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer([{"id": run, "name": "lenet5 on digits"} for run in asked["flow_runs"]["id"]["any_"]])
    def answer(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())
h.ThreadingHTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""
RUN = """
from uuid import uuid4
from dfkd_flows.session.run_notes import hold
hold(uuid4())
print("held", flush=True)
input()
"""


@pytest.fixture
def run_on_the_server(project: Path) -> Iterator[tuple[Starting, subprocess.Popen[str]]]:
    """A run in progress on the project's server, which names it."""
    (project / ".dfkd").mkdir(exist_ok=True)
    program = PREFECT.replace("{", "{{").replace("}", "}}").replace("{{port}}", "{port}")
    started = start(replace(FILES, arguments=("-c", program)))
    started.wait()
    environment = {**os.environ, "PREFECT_API_URL": started.service.url}
    with subprocess.Popen(
        [sys.executable, "-c", RUN], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        assert run.stdout.readline() == "held\n"
        yield started, run
        run.kill()
    if running("prefect"):
        stop(started)


def test_down__names_the_run_that_it_would_end(run_on_the_server: tuple[Starting, subprocess.Popen[str]]) -> None:
    started, run = run_on_the_server
    refused = CliRunner().invoke(app, ["down"])
    assert refused.exit_code == 2
    named = f"a run in progress: lenet5 on digits (process {run.pid})"
    assert f"dfkd down would end {named}. Nothing was stopped. End it" in refused.output
    assert running("prefect") == started.service
    ended = CliRunner().invoke(app, ["down", "--yes"])
    assert f"This ends {named}. Finished shards and checkpoints are kept" in ended.output
    assert "Stopped: Prefect. Start again with: dfkd up" in ended.output
    started.process.wait()


def test_down__asks_at_a_terminal(run_on_the_server: tuple[Starting, subprocess.Popen[str]]) -> None:
    started, run = run_on_the_server
    controller, terminal = pty.openpty()
    os.write(controller, b"n\n")
    done = subprocess.run(
        [sys.executable, "-m", "dfkd_flows", "down"], stdin=terminal, capture_output=True, text=True, check=False
    )
    os.close(controller)
    os.close(terminal)
    assert done.returncode == 1
    assert f"process {run.pid}" in done.stdout
    assert "Stop the services? [y/N]" in done.stdout
    assert "Nothing was stopped. Stop the services when the run has ended with: dfkd down" in done.stderr
    assert running("prefect") == started.service


def test_down__does_not_name_a_run_that_has_ended(run_on_the_server: tuple[Starting, subprocess.Popen[str]]) -> None:
    _, run = run_on_the_server
    run.kill()
    run.wait()
    assert ended_runs() == []
