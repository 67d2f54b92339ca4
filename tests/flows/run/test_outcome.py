"""The state of a run that is not green, and what it reports."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Completed, Crashed, Failed

from dfkd_flows.notify.trust import trust
from dfkd_flows.pipeline import pipeline
from dfkd_flows.run.announcing import announce
from dfkd_flows.run.outcome import Made, made_by
from dfkd_flows.settings.notify import EVENTS, NotifyConfig
from dfkd_flows.settings.params import Params
from dfkd_tasks.mlflow_store.publishing import Publication

CHAMPION = Publication(run_id="r", model="m", version="3", promoted=True, reason="first champion", champion="3")
REFUSED = replace(CHAMPION, promoted=False, refused=True, reason="refused: accuracy is less", champion="2")
REJECTED = replace(REFUSED, broken=("registry.min_accuracy_share", "registry.margin"))
DROPPED = replace(REFUSED, broken=("registry.margin",))
STUDENTS = Params(students={name: {"teacher": "default"} for name in ("a", "b")})
SCRIPT = "import json, sys; r = json.load(sys.stdin); open('got', 'a').write(r['event'] + ' ' + r['student'] + '\\n')"


def made(*published: Publication, **values: Any) -> Made:
    return Made(STUDENTS, dict(zip(STUDENTS.students, published)), **values)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (made(CHAMPION, CHAMPION), ""),
        (made(CHAMPION, REJECTED), "Rejected"),
        (made(DROPPED, CHAMPION), "Dropped"),
        (made(DROPPED, REJECTED), "Rejected"),
        (made(REJECTED, faults=("MLflow is away",)), "NotDelivered"),
        (made(REJECTED, failed=("b",), faults=("MLflow is away",)), "Failed"),
        # Somebody has rolled it back.
        (made(replace(CHAMPION, promoted=False, champion="2")), ""),
    ],
)
def test_state__is_that_of_the_gravest_outcome(found: Made, state: str) -> None:
    error = found.error()
    assert (error.state if error else "") == state


def test_refusal__names_the_rules_and_the_champion_and_is_no_failure_on_a_terminal() -> None:
    found = made(CHAMPION, DROPPED)
    assert str(found.error()) == "b: m version 3 is refused: accuracy is less; the champion stays version 2"
    found.check()
    error = found.error()
    assert error

    def flow() -> None:
        raise error

    assert made_by(flow) is found
    alone = Made(Params(), {"default": replace(REJECTED, champion="")})
    assert str(alone.error()) == "m version 3 is refused: accuracy is less; there is no champion"


@pytest.fixture
def reported(project: Path) -> Any:
    """Return a function that ends a run in a state and returns the reports."""
    Path("report.py").write_text(SCRIPT)
    config = NotifyConfig(command="python report.py", events=EVENTS)
    trust(config)

    def end(found: Made | None, state: Any) -> list[str]:
        own = replace(STUDENTS, notify=config)
        text = Path("params.yaml").read_text().replace('command: ""', "command: python report.py")
        Path("params.yaml").write_text(text)
        if found:
            found = replace(found, params=own)
            error = found.error()
            state = Failed(name=error.state, data=error) if error else Completed(data=found)
        announce(pipeline, FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4()), state)
        return Path("got").read_text().splitlines() if Path("got").exists() else []

    return end


@pytest.mark.parametrize(
    ("found", "reports"),
    [
        (made(CHAMPION, REJECTED), ["promoted a", "rejected b"]),
        # The next night finds the same.
        (made(replace(CHAMPION, is_earlier=True), replace(REJECTED, is_earlier=True)), ["rejected b"]),
        (made(DROPPED, failed=("b",)), ["failed b", "dropped a"]),
        (made(CHAMPION, faults=("x",)), ["not_delivered lenet5 on fashion_mnist -> a, b", "promoted a"]),
    ],
)
def test_reports__are_one_for_each_student(reported: Any, found: Made, reports: list[str]) -> None:
    assert reported(found, None) == reports


@pytest.mark.parametrize("state", [Crashed(message="killed"), Cancelling(), Failed(message="no disk")])
def test_run__that_ends_before_it_has_results_is_reported_too(reported: Any, state: Any) -> None:
    assert reported(None, state) == ["failed lenet5@0.5"]


def test_run__that_fails_for_its_params_is_reported_as_far_as_they_can_be_read(reported: Any) -> None:
    Path("params.yaml").write_text(f"seed: one\n{Path('params.yaml').read_text().replace('seed: 0', '')}")
    assert reported(None, Failed(message="1 fault in params.yaml")) == ["failed "]


def test_report__that_cannot_be_sent_does_not_disturb_the_end_of_the_run(reported: Any) -> None:
    Path("params.yaml").write_text("<<<<<<< HEAD")
    assert reported(None, Failed(message="no YAML")) == []
