"""Which students a deployed run makes, and where its changes are made."""

from __future__ import annotations

import pytest

from dfkd_core.errors import ConfigError
from dfkd_flows.run.trial import chosen_students, trial_changes
from dfkd_flows.settings.overrides import apply_overrides
from dfkd_flows.settings.params import Params

SEVERAL = apply_overrides(
    Params(),
    [
        "teachers.tall={}",
        "students.small={teacher: tall}",
        "students.flat={teacher: tall, distillation: {epochs: 3}}",
    ],
)


@pytest.mark.parametrize(
    ("teacher", "students", "chosen"),
    [
        (None, [], ["default", "small", "flat"]),
        ("tall", [], ["small", "flat"]),
        ("tall", ["flat"], ["flat"]),
        (None, ["default"], ["default"]),
    ],
)
def test_students__are_those_named_or_those_of_the_teacher(
    teacher: str | None, students: list[str], chosen: list[str]
) -> None:
    assert chosen_students(SEVERAL, teacher, students) == chosen


@pytest.mark.parametrize(
    ("teacher", "students", "text"),
    [
        ("nobody", [], "No teacher 'nobody'"),
        ("tall", ["default"], "The teacher tall has no student default; it has: small, flat"),
        ("tall", ["nobody"], "No student 'nobody'"),
        ("empty", [], "The teacher empty has no student"),
    ],
)
def test_unknown_names__are_refused(teacher: str, students: list[str], text: str) -> None:
    params = apply_overrides(SEVERAL, ["teachers.empty={}"])
    with pytest.raises(ConfigError, match=text):
        chosen_students(params, teacher, students)


def test_changes__reach_students_that_have_values_of_their_own() -> None:
    changes = trial_changes(SEVERAL, ["small", "flat"], epochs=7, num_images=50)
    changed = apply_overrides(SEVERAL, changes)
    for name in ("small", "flat"):
        own = changed.for_student(name)
        assert (own.distillation.epochs, own.synthesis.num_images) == (7, 50)
    untouched = changed.for_student("default")
    assert untouched.synthesis.num_images == SEVERAL.for_student("default").synthesis.num_images


def test_one_student__has_its_changes_in_the_base_sections() -> None:
    assert trial_changes(Params(), ["default"], epochs=7) == ["distillation.epochs=7"]
    assert trial_changes(Params(), ["default"]) == []
