"""The factories that the user trusts by name: in params.yaml, and on the command line with `--trust-factory`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.trust import allow_factories
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles

__all__ = ["allow"]


def allow(params: Params, trusted: Collection[str], *folders: Path) -> None:
    """Note that stored models may call the factories that the user has named.

    Args:
        params: Each of the project's own models may call the teacher and the student that are named for it.
        trusted: Names from the command line, which hold for all of these models.
        *folders: Stored models from elsewhere.
    """
    for name in params.teachers:
        allow_factories(TeacherFiles(name).network, [params.for_teacher(name).teacher.source.model, *trusted])
    for name in params.students:
        own = params.for_student(name)
        named = [own.teacher.source.model, own.distillation.student, *trusted]
        for folder in (TeacherFiles(own.teacher_name).network, StudentFiles(name).network):
            allow_factories(folder, named)
    for folder in folders:
        allow_factories(folder, trusted)
