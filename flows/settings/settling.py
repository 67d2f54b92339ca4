"""How params.yaml gets new values: planned in memory, checked, then written once."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.settings.checks import check_run
from dfkd_flows.settings.overrides import Change, apply_overrides, apply_preset, changes_between, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.settings.trust import allow
from dfkd_tasks.caching.source_files import student_digest, teacher_digest
from dfkd_tasks.mlflow_store.registry import local_source

__all__ = ["Plan", "planned", "settle"]

_DIGESTS = ("teacher.source.sha256", "distillation.student_sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Wanted parameters that are neither checked nor written yet."""

    params: Params
    """With the digest of the teacher's files in `teacher.source.sha256`."""
    changes: tuple[Change, ...]
    """Differences from params.yaml."""
    files_changed: bool
    """Whether the teacher's files differ from those that `teacher.source.sha256` named."""
    source: SourceConfig
    """The teacher's source with local files instead of MLflow's addresses."""
    scratch: Path
    """Folder for temporary files, which holds what was fetched from MLflow."""

    def shown(self) -> list[Change]:
        """Return the changes that the user made."""
        return [change for change in self.changes if change.path not in _DIGESTS]


@contextmanager
def planned(
    preset: str | None, assignments: Sequence[str], *, trusted: Collection[str] = (), current: Params | None = None
) -> Iterator[Plan]:
    """Compute the wanted parameters and digest the teacher's files; write nothing.

    Args:
        preset: Its values replace those of params.yaml; None keeps them.
        assignments: Applied after it, like `synthesis.num_images=2000`.
        trusted: Factories that a stored teacher may call.
        current: Parameters of the project; None reads params.yaml.

    Raises:
        ConfigError: params.yaml, the preset or an assignment has a fault.
        TeacherError: MLflow does not have the teacher.
    """
    current = current or load_params()
    wanted = apply_overrides(apply_preset(preset) if preset else current, assignments)
    noted = wanted.teacher.source
    with tempfile.TemporaryDirectory() as scratch:
        local = local_source(noted, Path(scratch))
        allow(wanted, trusted, Path(local.model))
        found = teacher_digest(local) if noted.model else ""
        wanted = _with_digests(wanted, found, student_digest(wanted.distillation.student))
        yield Plan(
            params=wanted,
            changes=tuple(changes_between(current, wanted)),
            files_changed=bool(noted.sha256) and noted.sha256 != found,
            source=local,
            scratch=Path(scratch),
        )


def settle(plan: Plan, *, with_evaluation: bool = True) -> None:
    """Check everything that would fail later in a run, then write params.yaml if it changes.

    Args:
        plan: The wanted parameters.
        with_evaluation: Whether the run reads the evaluation data.

    Raises:
        DfkdError: A check failed, or the file cannot be written; params.yaml is then as it was.
    """
    check_run(plan.params, plan.source, plan.scratch, with_evaluation=with_evaluation)
    if plan.changes:
        write_params(plan.changes)


def _with_digests(params: Params, teacher: str, student: str) -> Params:
    source = dataclasses.replace(params.teacher.source, sha256=teacher)
    return dataclasses.replace(
        params,
        teacher=dataclasses.replace(params.teacher, source=source),
        distillation=dataclasses.replace(params.distillation, student_sha256=student),
    )
