"""`dfkd promote`, `dfkd rollback` and `dfkd history` in a project with real versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from dfkd_flows.cli import app
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.mlflow_store.aliases import list_versions

NAME = "dfkd-student-digits"
# The networks are not trained.
ANY = ("--set", "registry.min_agreement=0", "--set", "registry.min_accuracy_share=0", "--set", "registry.margin=1")

PUBLISHED = StudentFiles("default").notes / "published.json"


def dfkd(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found.output


def aliases() -> dict[str, str]:
    return {name: version.number for version in list_versions(NAME) for name in version.aliases}


@pytest.fixture
def two_versions(evaluated_on: Callable, register: Callable, report: Callable) -> None:
    """Register a champion by hand and a challenger."""
    found = evaluated_on()
    register("champion", report("champion"))
    register("challenger", found, **{"latency.student.batch_1_ms": 2.0})
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")


def test_commands__without_a_registry_name_the_next_command(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("dataset: fashion_mnist", "dataset: digits", 1))
    for command in ("promote", "rollback", "history"):
        assert "No student is registered yet. Make and register one with: dfkd run" in dfkd(command, code=1)
        assert "No student 'other' in this project; there are: default" in dfkd(command, "--student", "other", code=2)
    assert not (project / "mlflow.db").exists()


def test_commands__without_a_version_and_without_a_champion(project: Path, store: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("dataset: fashion_mnist", "dataset: digits", 1))
    for command in ("promote", "rollback", "history"):
        assert f"No version of {NAME} is registered yet" in dfkd(command, code=1)


def test_promote__by_the_rules_and_back(two_versions: None) -> None:
    PUBLISHED.parent.mkdir(parents=True, exist_ok=True)
    PUBLISHED.write_text(json.dumps({"model": NAME, "version": "2", "promoted": False, "reason": "worse"}))
    refused = dfkd("promote", code=1)
    for words in (
        "broken: agreement",
        "registry.min_agreement 0.75",
        f"Version 2 of {NAME} is refused",
        "enforce_rules",
    ):
        assert words in refused
    assert "broken: milliseconds for one image: 2 is above registry.max_latency_ms 1" in dfkd(
        "promote", "2", "--dry-run", "--set", "registry.max_latency_ms=1", code=1
    )
    assert "has no version '7'. Versions: 2, 1" in dfkd("promote", "7", code=2)
    assert "is the champion already" in dfkd("promote", "1")
    assert "would become the champion" in dfkd("promote", "2", "--dry-run", *ANY)
    assert aliases() == {"champion": "1"}
    promoted = dfkd("promote", "--student", "default", *ANY)
    assert "against the champion's" in promoted
    assert "is the champion now. Go back with: dfkd rollback" in promoted
    assert aliases() == {"champion": "2", "previous": "1"}
    assert json.loads(PUBLISHED.read_text())["promoted"] is True
    assert f"Version 1 of {NAME} is the champion again, in place of version 2" in dfkd("rollback")
    assert aliases() == {"champion": "1"}
    assert json.loads(PUBLISHED.read_text())["promoted"] is False
    assert "has no champion before version 1" in dfkd("rollback", code=1)
    history = dfkd("history")
    for words in (
        "version",
        "registered",
        "agreement",
        "rolled back to 1",
        "not decided",
        "champion",
        "registry.margin",
    ):
        assert words in history
    assert history.index("\n2  ") < history.index("\n1  ")
    # With several students, a printed command names this one too.
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("students:", "students:\n  small: {teacher: default}", 1))
    assert "Versions: 2, 1, see: dfkd history --student default" in dfkd("promote", "7", "--student", "default", code=2)
    way_out = "Choose another one with: dfkd promote VERSION --student default; dfkd history --student default shows"
    assert way_out in dfkd("rollback", "--student", "default", code=1)


def test_commands__for_a_named_student_print_its_option(two_versions: None) -> None:
    params = Path("params.yaml")
    student = "  small: {teacher: default, registry: {model_name: dfkd-student}}"
    params.write_text(params.read_text().replace("  default:\n    teacher: default", student))
    assert "dfkd promote VERSION --student small; dfkd history --student small" in dfkd("rollback", code=1)


def test_rollback__to_a_version_that_cannot_be_loaded_changes_nothing(two_versions: None) -> None:
    dfkd("promote", *ANY)
    Path("models/0/data/model.pt2").write_bytes(b"")
    assert "cannot be loaded from the registry" in dfkd("rollback", code=1)
    assert aliases() == {"champion": "2", "previous": "1"}
    mlflow.MlflowClient().delete_registered_model_alias(NAME, "champion")
    assert "has no champion. Choose one with: dfkd promote VERSION" in dfkd("rollback", code=1)


def test_promote__a_version_that_cannot_be_loaded_and_one_without_an_evaluation(two_versions: None) -> None:
    Path("models/1/data/model.pt2").write_bytes(b"")
    assert "Version 2 of dfkd-student-digits cannot be loaded" in dfkd("promote", *ANY, code=1)
    StudentFiles("default").predictions.unlink()
    assert "There are no predictions" in dfkd("promote", *ANY, code=1)
    assert aliases() == {"champion": "1"}
