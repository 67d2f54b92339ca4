"""Stored models of a project, with the factories that the user allows them to call."""

from __future__ import annotations

from pathlib import Path

from dfkd_core.common.compute import CPU, Compute
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import load_model
from dfkd_core.models.teacher import Teacher, load_teacher
from dfkd_tasks.caching.trust import trusted_factories

__all__ = ["load_allowed_model", "load_allowed_teacher"]


def load_allowed_model(folder: Path) -> Classifier:
    """Read a stored model; arguments and errors as in `load_model`."""
    return load_model(folder, trusted_factories=trusted_factories(folder))


def load_allowed_teacher(folder: Path, *, compute: Compute = CPU) -> Teacher:
    """Read a stored teacher; arguments and errors as in `load_teacher`."""
    return load_teacher(folder, compute=compute, trusted_factories=trusted_factories(folder))
