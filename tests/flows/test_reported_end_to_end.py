"""A night that is not green, with a real Prefect server: its state, sub-runs and artefacts, and the reports of it."""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_FIRE = 60
NIGHT = """
import sys
from dfkd_flows.session.environment import enter_project, prepare_environment
prepare_environment(enter_project())
from dfkd_flows.pipeline import pipeline
pipeline(overrides=sys.argv[1:])
"""
BLOCK = """
import sys
from prefect.blocks.webhook import Webhook
print(Webhook(url=sys.argv[1]).save("dfkd", overwrite=True))
"""
KILLED = """
import os
from prefect import flow
@flow(name="stage")
def stage():
    os.kill(os.getpid(), 9)
@flow(name="killed")
def killed():
    stage()
killed()
"""
ENDED = """
import sys
from prefect.client.orchestration import get_client
from dfkd_flows.shown.parent import end_sub_runs
with get_client(sync_client=True) as client:
    end_sub_runs(None, client.read_flow_run(sys.argv[1]), None)
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Receiver:
    """What was sent, by its path."""

    url: str = ""
    got: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def of(self, path: str) -> list[dict[str, Any]]:
        """Return what a path got."""
        return [content for where, content in self.got if where == path]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@dataclass
class Place:
    """A project with a student, on a Prefect server with an automation of docs/nightly.md."""

    workspace: Any
    url: str

    def ask(self, path: str, **query: Any) -> Any:
        """Return what Prefect's server answers."""
        request = urllib.request.Request(
            f"{self.url}/api{path}", json.dumps(query).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def last_run(self) -> dict[str, Any]:
        """Return the last run of the pipeline."""
        runs = self.ask("/flow_runs/filter", sort="START_TIME_DESC", flows={"name": {"any_": ["pipeline"]}}, limit=1)
        return dict(runs[0])

    def night(self, *overrides: str, code: int = 1) -> dict[str, Any]:
        """Run the nightly flow, and return its run."""
        self.workspace.run("python", "-c", NIGHT, *overrides, code=code)
        return self.last_run()


@pytest.fixture(scope="module")
def place(
    make_workspace: Callable[[str], Any], serve: Callable[..., Any], small: dict[str, Any], receiver: Receiver
) -> Place:
    server = serve("prefect", "server", "start", "--host", "127.0.0.1", "--port", "{port}", page="/api/health")
    workspace = make_workspace("reported")
    workspace.environment["PREFECT_API_URL"] = f"{server.url}/api"
    page = (ROOT / "docs/nightly.md").read_text()
    automation = page.partition("```yaml\nautomations:")[2].partition("```")[0]
    block = workspace.run("python", "-c", BLOCK, f"{receiver.url}/automation").split()[-1]
    (workspace.path / "automation.yaml").write_text(f"automations:{automation}".replace(": ID\n", f": {block}\n"))
    workspace.run("prefect", "automation", "create", "--from-file", "automation.yaml")
    settings = small | {"registry.enforce_rules": True, "registry.min_agreement": 0, "registry.min_accuracy_share": 0}
    settings |= {"synthesis.num_images": 100, "execution.task_runner": "threads"}
    settings |= {"notify.webhook": f"{receiver.url}/hook", "notify.events": "[rejected, failed, promoted]"}
    workspace.run("dfkd", "run", *[part for name, value in settings.items() for part in ("--set", f"{name}={value}")])
    return Place(workspace, server.url)


def test_first_run__is_green_and_shows_its_parts(place: Place, receiver: Receiver) -> None:
    run = place.last_run()
    assert (run["state_name"], run["name"]) == ("Completed", "lenet5 on digits -> lenet5@0.5")
    assert set(run["tags"]) == {"dfkd", "lenet5", "lenet5@0.5", "digits"}
    stages = place.ask("/flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run["id"]]}})
    assert sorted(stage["name"] for stage in stages) == [
        "distill lenet5@0.5", "evaluate lenet5@0.5", "statistics lenet5", "synthesize lenet5", "teacher lenet5",
    ]  # fmt: skip
    logs = place.ask("/logs/filter", logs={"flow_run_id": {"any_": [stage["id"] for stage in stages]}})
    assert any(line["message"].startswith("100 images by soft_target") for line in logs)
    artefacts = place.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    content = {artefact["key"]: artefact["data"] for artefact in artefacts}
    assert sorted(content) == [f"dfkd-student-digits-{kind}" for kind in ("figures", "promotion", "samples")]
    assert "accuracy, 95 % interval" in content["dfkd-student-digits-figures"]
    assert content["dfkd-student-digits-samples"].startswith("data:image/jpeg;base64,")
    assert "version 1 is the champion" in content["dfkd-student-digits-promotion"]
    # Nobody has allowed the address yet.
    assert receiver.of("/hook") == []


def test_refused_student__is_not_green_and_is_reported(place: Place, receiver: Receiver) -> None:
    place.workspace.run("dfkd", "notify", "--trust")
    worse = ("--set", "distillation.epochs=1", "--set", "registry.min_agreement=0.99")
    output = place.workspace.run("dfkd", "run", *worse)
    assert "Registered dfkd-student-digits version 2: refused: agreement" in output
    run = place.last_run()
    assert (run["state_name"], run["state_type"]) == ("Rejected", "FAILED")
    assert "the champion stays version 1" in run["state"]["message"]
    test, report = receiver.of("/hook")
    assert (test["event"], report["event"], report["state"]) == ("test", "rejected", "Rejected")
    assert (report["model"], report["version"], report["champion"]) == ("dfkd-student-digits", "2", "1")
    assert 0 <= report["figures"]["student.accuracy"] <= 1
    assert report["links"]["prefect"] == f"{place.url}/runs/flow-run/{run['id']}"
    deadline = time.monotonic() + SECONDS_TO_FIRE
    while not receiver.of("/automation"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert receiver.of("/automation")[0]["state"] == "Rejected"


def test_next_night__without_any_change_is_not_green_either(place: Place, receiver: Receiver) -> None:
    run = place.night()
    assert run["state_name"] == "Rejected"
    assert place.ask("/flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run["id"]]}}) == []
    assert [report["event"] for report in receiver.of("/hook")] == ["test", "rejected", "rejected"]
    output = place.workspace.run("dfkd", "promote", "--set", "registry.enforce_rules=false")
    assert "is the champion now" in output
    assert place.night(code=0)["state_name"] == "Completed"


def test_trial__has_a_table_and_artefacts_of_its_own(place: Place) -> None:
    run = place.night("evaluation.num_bins=7", code=0)
    assert run["name"] == "trial of lenet5 on digits -> lenet5@0.5"
    artefacts = place.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    content = {artefact["key"].rpartition("-")[2]: artefact["data"] for artefact in artefacts}
    assert sorted(content) == ["figures", "run", "samples"]
    assert all("-trial-" in artefact["key"] and "Trial of " in artefact["description"] for artefact in artefacts)
    assert "accuracy, 95 % interval" in content["figures"]
    for words in ("Trial of", "not registered", "`evaluation.num_bins: 15 -> 7`", "Keep it with: `dfkd run --set"):
        assert words in content["run"]
    logs = place.ask("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
    assert any("which is not registered" in line["message"] and "agreement" in line["message"] for line in logs)


def test_failed_stage__is_reported_with_its_reason(place: Place, receiver: Receiver) -> None:
    run = place.night("execution.memory_gib=1e-6", "distillation.epochs=3")
    assert run["state_name"] == "Failed"
    assert run["state"]["message"].startswith("distill lenet5@0.5: A step of lenet5_half on 100 images takes about")
    report = receiver.of("/hook")[-1]
    assert (report["event"], report["student"]) == ("failed", "lenet5@0.5")
    assert report["reasons"] == [run["state"]["message"]]


def test_sub_runs_of_a_run_that_was_killed__do_not_count_as_running(place: Place) -> None:
    place.workspace.run("python", "-c", KILLED, code=-9)
    [run] = place.ask("/flow_runs/filter", flows={"name": {"any_": ["killed"]}})
    below = {"parent_flow_run_id": {"any_": [run["id"]]}}
    assert [stage["state_name"] for stage in place.ask("/flow_runs/filter", flow_runs=below)] == ["Running"]
    place.workspace.run("python", "-c", ENDED, run["id"])
    assert [stage["state_name"] for stage in place.ask("/flow_runs/filter", flow_runs=below)] == ["Crashed"]
