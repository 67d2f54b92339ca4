"""Damaged notes in .dfkd count as missing; damaged results are a sentence."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dfkd_core.errors import DfkdError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_flows.cli import app
from dfkd_flows.run.results import Results, results_of, results_text
from dfkd_flows.run.table import is_published, note_run, read_latency, read_metrics
from dfkd_flows.session.environment import TELEMETRY_OFF
from dfkd_flows.settings.overrides import apply_overrides, changes_between, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.workspace import STATE, STORE, StudentFiles, TeacherFiles, reference
from dfkd_tasks.dvc_project.status import results_digest
from dfkd_tasks.records.history import write_start
from dfkd_tasks.records.timing import timed

SCORES = {"num_parameters": 61706, "size_bytes": 247000, "accuracy": 0.9, "ece": 0.1}
GOOD = {"teacher": SCORES, "student": {**SCORES, "agreement": 0.95, "kl": 0.2}, "num_images": 20}
FILES = StudentFiles("default")
TEACHER, STUDENT, METRICS = TeacherFiles("default").network, FILES.network, FILES.metrics
STAGES = ", ".join(f"{name}: {{cmd: x, outs: [{{path: {name}, md5: '0'}}]}}" for name in addresses(Params()))
LOCK = f"schema: '2.0'\nstages: {{{STAGES}}}\n"
DAMAGED = ["", '{"teacher": {"num_par', "[]", "3", '"text"', "null", '{"seconds": []}', "\x00"]


@pytest.fixture(autouse=True)
def _results(project: Path) -> None:
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.3,), layer="fc1"
    )
    for folder in (TEACHER, STUDENT):
        save_model(folder, build_classifier(card, seed=0).eval())
    write_start(STUDENT, "random", [])
    METRICS.parent.mkdir()
    METRICS.write_text(json.dumps(GOOD))
    Path("dvc.lock").write_text(LOCK)
    with closing(sqlite3.connect(STORE)) as store:
        store.execute("CREATE TABLE model_versions (name, version INTEGER, current_stage)")
        store.execute("INSERT INTO model_versions VALUES ('m', 7, 'None')")
        store.commit()
    write_notes()


def write_notes() -> None:
    STATE.mkdir(exist_ok=True)
    times = {"batch_1_ms": 1.25, "batch_64_ms": 40.0}
    note_run(Params(), 0, 12.5)
    FILES.latency.write_text(
        json.dumps({"student_sha256": reference(STUDENT).sha256, "teacher": times, "student": times})
    )
    digest = results_digest(addresses(Params()))
    published = {"results_sha256": digest, "model": "m", "version": "7", "promoted": True, "reason": "first"}
    (FILES.notes / "published.json").write_text(json.dumps(published))
    with timed("teacher@default"):
        pass


def test_render__shows_what_the_notes_say() -> None:
    text = results_text(Params())
    for part in ("1.25 ms", "of 12.5 s in the last run", "version 7: first", "models:/m@champion"):
        assert part in text


def test_results__that_are_known_only_get_the_time_of_the_run() -> None:
    found = results_of(Params())
    assert results_text(Params()) == results_text(Params(), found)
    rows = results_text(Params(), Results("the figures", "the pointers")).split("\n")
    assert [rows[0], *rows[2:]] == ["the figures", "", "the pointers", ""]
    assert rows[1].startswith("orchestration ")
    # The log of a run has them before its time is known.
    assert found.text().splitlines() == [line for line in results_text(Params()).splitlines() if line != rows[1]]


def test_show__notes_that_params_yaml_has_changed_since() -> None:
    path = "outs: [{path: evaluate@"
    Path("dvc.lock").write_text(LOCK.replace(path, f"params: {{params.yaml: {{data: {{}}}}}}, {path}"))
    assert "has changed" not in CliRunner().invoke(app, ["show"]).output
    write_params(changes_between(load_params(), apply_overrides(load_params(), ["data.dataset=mnist"])))
    note = "Note: params.yaml has changed since these results were made: data. Make them again with: dfkd run default"
    assert note in CliRunner().invoke(app, ["show"]).output
    result = CliRunner().invoke(app, ["export", "--out", "exported", "--format", "safetensors"])
    assert note in result.output


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", ["published.json", "run.json", "latency.json", "../../timings/teacher@default.jsonl"])
def test_render__without_a_damaged_note(name: str, content: str) -> None:
    path = FILES.notes / name
    assert path.is_file()
    path.write_text(content)
    text = results_text(Params())
    assert "accuracy" in text
    if name == "published.json":
        assert not is_published(Params())
        assert "register it with: dfkd publish" in text
    if name == "latency.json":
        assert read_latency(FILES) == {}
    write_notes()
    assert "version 7: first" in results_text(Params())


@pytest.mark.parametrize("content", [None, b"", b"<html>Not Found</html>" * 300], ids=["gone", "empty", "other text"])
def test_student__counts_as_registered_only_if_the_store_has_its_version(content: bytes | None) -> None:
    assert is_published(Params())
    STORE.unlink()
    if content is not None:
        STORE.write_bytes(content)
    assert not is_published(Params())
    assert "register it with: dfkd publish" in results_text(Params())


def test_student__whose_version_was_deleted_is_not_registered() -> None:
    with closing(sqlite3.connect(STORE)) as store:
        store.execute("UPDATE model_versions SET current_stage = 'Deleted_Internal'")
        store.commit()
    assert not is_published(Params())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "Invalid JSON"),
        ('{"teacher": {', "Invalid JSON"),
        ("[]", "should be an object"),
        ("{}", "it has no number teacher.num_parameters, "),
        ('{"teacher": {}, "student": 3}', "it has no number teacher.num_parameters, "),
        (json.dumps({**GOOD, "teacher": {**SCORES, "ece": "low"}}), "it has no number teacher.ece."),
        (json.dumps({**GOOD, "proxy": {"agreement": 1, "kl": True}}), "it has no number proxy.kl, number proxy.num_cl"),
    ],
)
def test_read_metrics__of_a_damaged_file_is_a_sentence(content: str, fault: str) -> None:
    METRICS.write_text(content)
    with pytest.raises(DfkdError, match=r"metrics/default\.json is damaged: .*Make it again with: dfkd run") as caught:
        read_metrics(FILES)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (METRICS, "metrics/default.json is damaged"),
        (STUDENT / "start.json", "start.json is damaged"),
        (STUDENT / "config.json", "config.json does not describe a model"),
        (Path("dvc.lock"), "dvc.lock cannot be read"),
        (Path("params.yaml"), "params.yaml is not YAML"),
    ],
)
def test_show__with_a_damaged_result_is_a_sentence(path: Path, message: str) -> None:
    path.write_text('{"a": [')
    result = CliRunner().invoke(app, ["show"])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "bug" not in result.output


def test_is_published__belongs_to_the_mlflow_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_published(Params())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    assert not is_published(Params())
    note = json.loads((FILES.notes / "published.json").read_text())
    page = "http://host:5000/#/experiments/1/runs/a"
    note |= {"store": "http://host:5000 (MLFLOW_TRACKING_URI)", "page": page}
    (FILES.notes / "published.json").write_text(json.dumps(note))
    # Without the project's own store, which is not used.
    STORE.unlink()
    assert is_published(Params())
    assert page in results_text(Params())
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://other:5000")
    assert not is_published(Params())
    assert "register it with: dfkd publish" in results_text(Params())


def test_printed_commands__turn_telemetry_off() -> None:
    lines = [line for line in results_text(Params()).splitlines() if "mlflow ui" in line or "prefect server" in line]
    assert len(lines) == 2
    assert "MLFLOW_DISABLE_TELEMETRY=true" in lines[0]
    assert all(
        f"{name}={TELEMETRY_OFF[name]}" in lines[1] for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK")
    )
