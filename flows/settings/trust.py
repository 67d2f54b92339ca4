"""The factories that the user trusts by name: in params.yaml, and on the command line with `--trust-factory`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.trust import allow_factories
from dfkd_tasks.caching.workspace import STUDENT, TEACHER

__all__ = ["allow"]


def allow(params: Params, trusted: Collection[str], *folders: Path) -> None:
    """Note that stored models may call the factories that the user has named.

    Args:
        params: The project's own models may call the teacher and the student that are named in it.
        trusted: Names from the command line, which hold for all of these models.
        *folders: Stored models from elsewhere.
    """
    for folder in (TEACHER, STUDENT):
        allow_factories(folder, [params.teacher.source.model, params.distillation.student, *trusted])
    for folder in folders:
        allow_factories(folder, trusted)
