"""Names of registered models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dfkd_core.common.digests import json_digest
from dfkd_core.data.datasets import NO_DATA
from dfkd_flows.settings.members import DEFAULT

__all__ = ["model_name"]

# Of a path; names of models have at most 256 characters.
_LONGEST_DATA = 70


def model_name(
    base: str, *, teacher: str, student: str, changes: Mapping[str, Any], dataset: str, teacher_digest: str
) -> str:
    """Return the name under which comparable versions of a student are registered: those evaluated on the same data.

    The names of teacher and student are part of it, except `default`, and unless the student has a `model_name` of its
    own. Agreement on synthetic images is comparable only for students of one teacher, so without real images the
    teacher's digest is part of it.

    Args:
        base: `registry.model_name`.
        teacher: Name of the teacher in the project.
        student: Name of the student in the project.
        changes: The student's changes of the base sections.
        dataset: `data.dataset`.
        teacher_digest: Digest of the teacher's weights.
    """
    said = "model_name" in changes.get("registry", {})
    names = [] if said else [name for name in (teacher, student) if name != DEFAULT]
    data = f"proxy-{teacher_digest[:8]}" if dataset == NO_DATA else re.sub("[^A-Za-z0-9.]+", "-", dataset).strip("-")
    if len(data) > _LONGEST_DATA:
        data = f"{json_digest(data)[:8]}-{data[-_LONGEST_DATA:].strip('-')}"
    return "-".join([base, *names, data])
