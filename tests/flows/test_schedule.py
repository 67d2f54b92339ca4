"""The night with a real server and a real worker: by prefect.yaml, and by `dfkd up` and `dfkd deploy`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import yaml

from dfkd_tasks.processes.background import MARK

SECONDS_TO_START = 120
SECONDS_TO_COMPLETE = 1500


@pytest.fixture
def workspace(make_workspace: Any, small: dict[str, Any]) -> Any:
    made = make_workspace("the schedule")
    write_settings(made, small)
    made.environment.update(
        {
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
        }
    )
    return made


def write_settings(workspace: Any, settings: dict[str, Any]) -> None:
    """Set values in params.yaml, as an editor would."""
    path = workspace.path / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for name, value in settings.items():
        *sections, key = name.split(".")
        section = params
        for one in sections:
            section = section.setdefault(one, {})
        section[key] = value
    path.write_text(yaml.safe_dump(params))


def run_deployment(workspace: Any, name: str, *parameters: str) -> str:
    """Run a deployment to its end, in whichever state, and return what Prefect printed."""
    options = [word for parameter in parameters for word in ("--param", parameter)]
    process = workspace.start(
        "prefect", "deployment", "run", name, *options, "--watch", "--watch-timeout", str(SECONDS_TO_COMPLETE)
    )
    output, _ = process.communicate(timeout=SECONDS_TO_COMPLETE + 60)
    return output


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


@pytest.fixture
def up(workspace: Any) -> Iterator[None]:
    """Start the services of the project with `dfkd up`, and end them in any case."""
    workspace.environment["PREFECT_HOME"] = str(workspace.path / ".dfkd" / "prefect")
    try:
        workspace.run("dfkd", "up")
        url = workspace.read_json(".dfkd/services/prefect.json")["url"]
        workspace.environment["PREFECT_API_URL"] = url
        yield
    finally:
        workspace.environment.pop("PREFECT_API_URL", None)
        workspace.run("dfkd", "down")


def _end(process: subprocess.Popen[str]) -> str:
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nightly_deployment__completes_on_a_worker(workspace: Any, server: None) -> None:
    workspace.environment["PREFECT_HOME"] = str(workspace.path / ".dfkd" / "prefect")
    workspace.run("prefect", "work-pool", "create", "dfkd", "--type", "process")
    workspace.run("prefect", "deploy", "--all")
    worker = workspace.start("prefect", "worker", "start", "--pool", "dfkd")
    try:
        run_deployment(workspace, "pipeline/nightly")
    finally:
        output = _end(worker)
        print(output)  # noqa: T201
    assert "Completed" in output, output
    assert workspace.read_json("metrics/default.json")["student"]["num_parameters"] == 35_820
    assert workspace.read_json(".dfkd/students/default/published.json")["model"] == "dfkd-student-digits"


SEVERAL = {
    "teachers.other": {"teacher": {"epochs": 1}},
    "students.default": {"teacher": "default"},
    "students.small": {"teacher": "default", "distillation": {"epochs": 1}},
    "students.third": {"teacher": "other"},
    "registry.enforce_rules": True,
    "registry.min_accuracy_share": 0.0,
    "registry.min_agreement": 0.0,
    "registry.margin": 0.1,
    "execution.num_workers": 1,
}
# Nearly its first weights, drawn at random.
WORSE = {
    "students.small.distillation.start": "random",
    "students.small.distillation.learning_rate": 1e-9,
    "students.small.registry": {"min_agreement": 0.9},
}


def _marked(folder: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == folder:
                found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_project_of_several__has_its_nights_trials_and_reevaluation(workspace: Any, up: None) -> None:
    write_settings(workspace, SEVERAL)
    deployed = workspace.run("dfkd", "deploy")
    for name in ("pipeline/nightly-default", "pipeline/nightly-other", "pipeline/on-demand", "reevaluate/reevaluate"):
        assert name in deployed
    assert "runs since" in workspace.run("dfkd", "up")
    # Other findings are of this machine.
    assert "in the background: prefect http://127.0.0.1" in workspace.start("dfkd", "doctor").communicate()[0]

    for teacher in ("default", "other"):
        assert "'Completed'" in run_deployment(workspace, f"pipeline/nightly-{teacher}", "pull=false")
    for student in ("default", "small", "third"):
        assert workspace.read_json(f".dfkd/students/{student}/published.json")["promoted"]

    assert "unknown" in run_deployment(workspace, "pipeline/on-demand", "unknown=1")
    before = {name: (workspace.path / name).read_bytes() for name in ("params.yaml", "dvc.lock", "metrics/small.json")}
    tried = run_deployment(workspace, "pipeline/on-demand", 'students=["small"]', "epochs=2")
    assert "'Completed'" in tried, tried
    assert {name: (workspace.path / name).read_bytes() for name in before} == before
    assert workspace.run("dfkd", "history", "--student", "small").count("promoted") == 1
    assert "'Completed'" in run_deployment(workspace, "reevaluate/reevaluate", "dataset=digits")

    write_settings(workspace, WORSE)
    assert "'Rejected'" in run_deployment(workspace, "pipeline/nightly-default", "pull=false")
    history = workspace.run("dfkd", "history", "--student", "small")
    assert "refused" in history, history
    assert not workspace.read_json(".dfkd/students/small/published.json")["promoted"]
    workspace.run("dfkd", "promote", "2", "--student", "small", "--set", "registry.enforce_rules=false")
    assert "Version 1" in workspace.run("dfkd", "rollback", "--student", "small")

    assert _marked(str(workspace.path))
    assert "Stopped: Worker, MLflow, Prefect" in workspace.run("dfkd", "down")
    assert _marked(str(workspace.path)) == []
    workspace.environment.pop("PREFECT_API_URL")
    assert "Nothing runs in the background" in workspace.run("dfkd", "down")
