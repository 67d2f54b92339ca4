"""The teacher that a command works with, loaded and checked outside of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd_core.errors import ConfigError
from dfkd_core.models.storage import CONFIG_FILE
from dfkd_core.teachers.loading import BroughtTeacher, bring_teacher
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.trust import allow
from dfkd_tasks.caching.stored_models import load_allowed_model
from dfkd_tasks.caching.trust import trusted_factories
from dfkd_tasks.caching.workspace import TeacherFiles
from dfkd_tasks.mlflow_store.registry import local_source

__all__ = ["loaded_teacher"]


@contextmanager
def loaded_teacher(params: Params, trusted: Collection[str]) -> Iterator[BroughtTeacher]:
    """Yield the teacher that the parameters name, or the one that was trained in the project."""
    source = params.teacher.source
    if not source.model:
        stored = TeacherFiles(params.teacher_name).network
        if not (stored / CONFIG_FILE).is_file():
            raise ConfigError("There is no teacher yet. Name one with --teacher SOURCE, or train one with: dfkd run")
        allow(params, trusted)
        yield BroughtTeacher(load_allowed_model(stored), ())
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        local = local_source(source, folder)
        allow(params, trusted, Path(local.model))
        yield bring_teacher(
            local,
            scratch=folder,
            layer=params.teacher.layer,
            image_size_hint=params.data.image_size,
            trusted_factories=trusted_factories(Path(local.model)),
        )
