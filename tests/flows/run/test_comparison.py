"""`dfkd compare` over students that are made, one that is not, and earlier runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dfkd_core.errors import ConfigError
from dfkd_flows.cli import app
from dfkd_flows.run.comparison import compare
from dfkd_flows.settings.overrides import changes_between, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params, parse_params
from dfkd_tasks.caching.workspace import StudentFiles

MODEL = {"num_parameters": 10, "size_bytes": 2500, "accuracy": 0.8, "ece": 0.1}
STUDENTS = {name: {"teacher": "default"} for name in ("default", "small", "blind", "later")}


@pytest.fixture(autouse=True)
def _project(project: Path) -> None:
    """A project with two students that were evaluated on images, one without images, and one that is not made."""
    current = load_params()
    write_params(changes_between(current, parse_params({"students": STUDENTS}, source="test")))
    Path("metrics").mkdir()
    for name, agreement in (("default", 0.9), ("small", 0.7)):
        student = {**MODEL, "agreement": agreement, "kl": 0.2}
        metrics = {"teacher": MODEL, "student": student, "num_images": 10}
        StudentFiles(name).metrics.write_text(json.dumps(metrics))
    sizes = {"num_parameters": 10, "size_bytes": 1000}
    proxy = {"agreement": 0.5, "kl": 1.0, "num_classes": 10, "largest_class": 0.2}
    metrics = {"teacher": sizes, "student": sizes, "proxy": proxy, "num_images": 400}
    StudentFiles("blind").metrics.write_text(json.dumps(metrics))


def cells(text: str) -> dict[str, str]:
    """Return the lines of a table by their first word."""
    return {line.split()[0]: line for line in text.splitlines() if line}


def test_table__has_the_figures_with_their_intervals() -> None:
    text = compare(load_params())
    lines = cells(text)
    assert lines["student"].split() == ["student", "accuracy", "agreement", "size", "latency", "seconds"]
    # Wilson's interval of 8 of 10.
    assert "80.00% (49.02% to 94.33%)  90.00% (59.58% to 98.21%)  " in lines["default"]
    assert lines["default"].split()[-4:] == ["2", "kB", "-", "-"]
    assert "50.00% (45.12% to 54.88%), proxy" in lines["blind"]
    assert lines["later"].split() == ["later", "-", "-", "-", "-", "-"]
    assert "Not made yet: later. Make with: dfkd run later" in text
    assert "dfkd show NAME" in CliRunner().invoke(app, ["show"]).output


def test_names_and_metric__choose_rows_and_the_column() -> None:
    lines = cells(compare(load_params(), names=["small"], metric="student.ece"))
    assert lines["student"].split() == ["student", "student.ece"]
    assert lines["small"].split() == ["small", "0.1"]
    assert "default" not in lines


def test_json__has_numbers_and_null() -> None:
    result = CliRunner().invoke(app, ["compare", "default", "later", "--json"])
    first, second = json.loads(result.output)
    assert (first["student"], first["run"], first["data"]) == ("default", "now", "fashion_mnist")
    assert (first["accuracy"], first["size"], first["latency"]) == (0.8, 2500.0, None)
    assert first["accuracy_interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert second["accuracy"] is second["accuracy_interval"] is None


def test_wrong_input__is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="did you mean accuracy"):
        compare(load_params(), metric="acuracy")
    with pytest.raises(ConfigError, match="No student 'smal' in this project; did you mean small"):
        compare(load_params(), names=["smal"])
    with pytest.raises(ConfigError, match="--runs must be 0 or more"):
        compare(Params(), runs=-1)


def test_runs__of_a_project_without_a_store_are_none() -> None:
    assert compare(load_params(), names=["small"], runs=3) == compare(load_params(), names=["small"])


def test_student_that_failed__has_a_row_without_the_figures_of_an_earlier_run() -> None:
    lines = cells(compare(load_params(), names=["default", "small"], failed=["small"]))
    assert lines["small"].split() == ["small", "failed", "-", "-", "-", "-", "-"]
    assert lines["default"].split()[1] == "now"
    assert "Not made yet" not in lines


def test_params_that_have_changed_since__are_named_with_the_command() -> None:
    stages = {"distill@small": {"params": {"params.yaml": {"distillation": {"epochs": 1}}}}}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    text = compare(load_params(), names=["default", "small"])
    assert "since these were made: small (distillation). Make them again with: dfkd run small" in text
    rows = json.loads(compare(load_params(), as_json=True))
    assert [row["changed_sections"] for row in rows] == [[], ["distillation"], [], []]
