"""Commands that are printed name the student or the teacher where the project has several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_flows.settings.choosing import student_option, teacher_argument
from dfkd_flows.settings.parsing import load_params

TWO = {"students": {name: {"teacher": "default"} for name in ("default", "small")}}
ONE = {"teachers": {"only": {}}, "students": {"small": {"teacher": "only"}}}


@pytest.mark.parametrize(
    ("content", "student", "expected"),
    [
        ({}, "default", ("", "")),
        ({"students": {"default": {"teacher": "default"}}}, "default", ("", "")),
        (TWO, "default", (" --student default", "")),
        (TWO, "small", (" --student small", "")),
        ({"teachers": {"default": None, "other": {}}}, "default", ("", " default")),
        (
            {"teachers": {"only": {}}, "students": {"small": {"teacher": "only"}}},
            "small",
            (" --student small", " only"),
        ),
    ],
)
def test_options__name_those_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], student: str, expected: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(content))
    own = load_params().for_student(student)
    assert (student_option(own), teacher_argument(own)) == expected
