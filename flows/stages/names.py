"""Stages by name: their addresses in DVC, like `distill@NAME`, and the words for them in messages."""

from __future__ import annotations

from collections.abc import Collection

from dfkd_flows.settings.params import Params

__all__ = ["STUDENT_STAGES", "TEACHER_STAGES", "addresses", "label", "last_stages", "up_to_date"]

TEACHER_STAGES = ("teacher", "statistics", "synthesize")
"""Stages of each teacher, in their order."""
STUDENT_STAGES = ("distill", "evaluate")
"""Stages of each student, which follow those of its teacher."""


def addresses(params: Params) -> list[str]:
    """Return the addresses of all stages of the teachers and students, in the order of dvc.yaml."""
    of_teachers = [f"{stage}@{name}" for stage in TEACHER_STAGES for name in params.teachers]
    return of_teachers + [f"{stage}@{name}" for stage in STUDENT_STAGES for name in params.students]


def last_stages(params: Params) -> list[str]:
    """Return the addresses of the stages that the others lead to: each student's last, a teacher's without students."""
    used = {params.teacher_of(name) for name in params.students}
    alone = [f"{TEACHER_STAGES[-1]}@{name}" for name in params.teachers if name not in used]
    return alone + [f"{STUDENT_STAGES[-1]}@{name}" for name in params.students]


def up_to_date(params: Params, changed: Collection[str]) -> list[str]:
    """Return the names of the students none of whose stages has changed, those of their teachers included.

    Args:
        params: Parameters with the students.
        changed: Addresses of the stages that have changed.
    """
    return [name for name in params.students if {*addresses(params.for_student(name))}.isdisjoint(changed)]


def label(address: str, params: Params) -> str:
    """Return the words for a stage: `distill` in a project with one student, otherwise `distill (NAME)`.

    Args:
        address: Its address in DVC.
        params: Parameters of the whole project.
    """
    stage, _, name = address.partition("@")
    members = params.teachers if stage in TEACHER_STAGES else params.students
    return f"{stage} ({name})" if name and len(members) > 1 else stage
