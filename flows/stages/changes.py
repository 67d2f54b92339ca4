"""Which sections of params.yaml have changed since results were made, from dvc.lock alone."""

from __future__ import annotations

from collections.abc import Iterator

from dfkd_flows.settings.members import TEACHER
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import has_values
from dfkd_flows.stages.names import addresses
from dfkd_tasks.dvc_project.status import LOCK, effective_sections, noted_params

__all__ = ["changed_sections", "older_note"]


def changed_sections(params: Params) -> list[str]:
    """Return the sections whose values differ from those that a student was made with; none without dvc.lock.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: dvc.lock is damaged.
    """
    if not LOCK.is_file():
        return []
    return list(dict.fromkeys(_changed(params)))


def older_note(params: Params) -> str:
    """Return a sentence on the changed sections and the next command; empty if none has changed.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    changed = changed_sections(params)
    if not changed:
        return ""
    return (
        f"params.yaml has changed since these results were made: {', '.join(changed)}. Make them again with: "
        f"dfkd run {params.student_name}"
    )


def _changed(params: Params) -> Iterator[str]:
    student = f"students.{params.student_name}"
    for address in addresses(params):
        noted = noted_params(address)
        if (noted.get(student) or {}).get(TEACHER, params.teacher_name) != params.teacher_name:
            yield f"{student}.{TEACHER}"
        for name, content in effective_sections(noted).items():
            if not has_values(getattr(params, name, None), name, content):
                yield name
