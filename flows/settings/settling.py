"""How params.yaml gets new values: planned in memory, checked, then written once."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.settings.checks import check_run
from dfkd_flows.settings.overrides import (
    Change,
    apply_overrides,
    apply_preset,
    changes_between,
    with_values,
    write_params,
)
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import check_complete, load_params
from dfkd_flows.settings.trust import allow
from dfkd_tasks.caching.source_files import student_digest, teacher_digest
from dfkd_tasks.mlflow_store.registry import local_source

__all__ = ["Plan", "planned", "settle"]

_DIGESTS = ("teacher.source.sha256", "distillation.student_sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Wanted parameters that are neither checked nor written yet."""

    params: Params
    """With the digests of the teachers' files in `teacher.source.sha256`."""
    students: tuple[str, ...]
    """Names of the students that are to be made."""
    changes: tuple[Change, ...]
    """Differences from params.yaml."""
    files_changed: tuple[str, ...]
    """Names of the teachers whose files differ from those that `teacher.source.sha256` named."""
    sources: Mapping[str, SourceConfig]
    """Each teacher's source with local files instead of MLflow's addresses."""
    scratch: Path
    """Folder for temporary files, which holds what was fetched from MLflow."""

    @property
    def chosen(self) -> Params:
        """The parameters with the students that are to be made, and with their teachers."""
        return self.params if len(self.students) == len(self.params.students) else self.params.only(self.students)

    def shown(self) -> list[Change]:
        """Return the changes that the user made."""
        return [change for change in self.changes if not change.path.endswith(_DIGESTS)]


@contextmanager
def planned(
    preset: str | None,
    assignments: Sequence[str],
    *,
    students: Sequence[str] = (),
    trusted: Collection[str] = (),
    current: Params | None = None,
) -> Iterator[Plan]:
    """Compute the wanted parameters and digest the teachers' files; write nothing.

    Args:
        preset: Its values replace those of params.yaml; None keeps them.
        assignments: Applied after it, like `synthesis.num_images=2000`.
        students: Names of the students that are to be made; all if there are none.
        trusted: Factories that a stored teacher may call.
        current: Parameters of the project; None reads params.yaml.

    Raises:
        ConfigError: params.yaml, the preset or an assignment has a fault, or there is no such student.
        TeacherError: MLflow does not have the teacher.
    """
    if current is None:
        current = load_params()
        check_complete()
    wanted = apply_overrides(_preset(preset, current) if preset else current, assignments)
    chosen = wanted.only(students) if students else wanted
    with tempfile.TemporaryDirectory() as scratch:
        sources = {}
        for name in chosen.teachers:
            (folder := Path(scratch, name)).mkdir()
            sources[name] = local_source(wanted.for_teacher(name).teacher.source, folder)
        allow(wanted, trusted, *(Path(source.model) for source in sources.values()))
        digests = _digests(chosen, sources)
        noted = {name: wanted.for_teacher(name).teacher.source.sha256 for name in sources}
        wanted = with_values(wanted, digests, source="params.yaml")
        found = {name: wanted.for_teacher(name).teacher.source.sha256 for name in sources}
        yield Plan(
            params=wanted,
            students=tuple(chosen.students),
            changes=tuple(changes_between(current, wanted)),
            files_changed=tuple(name for name in sources if noted[name] and noted[name] != found[name]),
            sources=sources,
            scratch=Path(scratch),
        )


def _preset(name: str, current: Params) -> Params:
    """Return the sections of a preset with the teachers and students of the project."""
    return dataclasses.replace(apply_preset(name), teachers=current.teachers, students=current.students)


def settle(plan: Plan, *, with_evaluation: bool = True) -> None:
    """Check everything that would fail later in a run, then write params.yaml if it changes.

    Args:
        plan: The wanted parameters.
        with_evaluation: Whether the run reads the evaluation data.

    Raises:
        DfkdError: A check failed, or the file cannot be written; params.yaml is then as it was.
    """
    for name, source in plan.sources.items():
        check_run(plan.chosen.for_teacher(name), source, plan.scratch / name, with_evaluation=with_evaluation)
    if plan.changes:
        write_params(plan.changes)


def _digests(chosen: Params, sources: Mapping[str, SourceConfig]) -> dict[str, str]:
    """Return the digests of files by the dotted path at which they are noted, beside the setting that names a file."""
    found = {}
    for name, source in sources.items():
        own = chosen.for_teacher(name)
        digest = teacher_digest(source) if own.teacher.source.model else ""
        if digest != own.teacher.source.sha256:
            changes = chosen.teachers[name].get("teacher", {})
            found[f"teachers.{name}.{_DIGESTS[0]}" if "source" in changes else _DIGESTS[0]] = digest
    for name, changes in chosen.students.items():
        training = chosen.for_student(name).distillation
        digest = student_digest(training.student)
        if digest != training.student_sha256:
            is_own = "student" in changes.get("distillation", {})
            found[f"students.{name}.{_DIGESTS[1]}" if is_own else _DIGESTS[1]] = digest
    return found
