"""The sections of params.yaml that have changed since results were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_core.errors import DfkdError
from dfkd_flows.settings.overrides import apply_overrides
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.stages.changes import changed_sections, older_note

TEACHER = {"seed": 0, "data": {"dataset": "fashion_mnist"}, "teacher": {}, "teachers.default": None}
STUDENT = {"seed": 0, "distillation": None, "students.small": {"teacher": "default", "distillation": {"epochs": 3}}}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Change into a folder with a dvc.lock, and return the parameters with which its results were made."""
    monkeypatch.chdir(tmp_path)
    lock(TEACHER, STUDENT)
    assert "students.small.distillation.epochs" not in flatten(Params())
    return apply_overrides(Params(), ["students.small={teacher: default, distillation: {epochs: 3}}"])


def lock(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    noted = {"teacher@default": teacher, "distill@small": student}
    stages = {name: {"cmd": "x", "params": {"params.yaml": sections}} for name, sections in noted.items()}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


@pytest.mark.parametrize(
    ("assignment", "sections"),
    [
        ("execution.num_workers=7", []),
        ("students.small.distillation.epochs=3", []),
        # The student has a value of its own.
        ("distillation.epochs=7", []),
        ("distillation.batch_size=7", ["distillation"]),
        ("students.small.distillation.epochs=4", ["distillation"]),
        ("teachers.default.data.dataset=digits", ["data"]),
        ("seed=1", ["seed"]),
        ("synthesis.num_images=7", []),
    ],
)
def test_changed_sections__are_those_whose_values_differ(params: Params, assignment: str, sections: list[str]) -> None:
    assert changed_sections(apply_overrides(params, [assignment]).for_student("small")) == sections


def test_other_teacher__is_a_change(params: Params) -> None:
    other = apply_overrides(params, ["teachers.other={}", "students.small.teacher=other"])
    assert changed_sections(other.for_student("small")) == ["students.small.teacher"]


def test_values_of_an_earlier_version__are_other_values(params: Params) -> None:
    lock({**TEACHER, "teacher": {"key_of_an_earlier_version": 1}}, {**STUDENT, "section_of_one": 2})
    assert changed_sections(params.for_student("small")) == ["teacher", "section_of_one"]


def test_older_note__has_the_next_command(params: Params) -> None:
    assert older_note(params.for_student("small")) == ""
    later = apply_overrides(params, ["seed=1", "distillation.batch_size=7"])
    assert older_note(later.for_student("small")).endswith(
        "made: seed, distillation. Make them again with: dfkd run small"
    )
    Path("dvc.lock").write_text("stages: [")
    with pytest.raises(DfkdError, match=r"dvc\.lock cannot be read"):
        older_note(params.for_student("small"))
