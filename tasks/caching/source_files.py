"""Digests of the files that a teacher is read from and of the file that defines a student."""

from __future__ import annotations

import time

from dfkd_core.common.digests import file_sha256, json_digest, write_json
from dfkd_core.models.factories import factory_file
from dfkd_core.teachers.loading import source_digest, source_files
from dfkd_core.teachers.source import SourceConfig
from dfkd_tasks.caching.file_states import are_old, file_state
from dfkd_tasks.caching.stored import read_note
from dfkd_tasks.caching.workspace import STATE

__all__ = ["student_digest", "teacher_digest"]

_NOTE = STATE / "teacher_files.json"
_KEPT_DIGESTS = 50


def teacher_digest(source: SourceConfig) -> str:
    """Return the `source_digest` of a teacher, 64 hex digits.

    The files are hashed again only if the size, the inode or a time stamp of one has changed since the last call in the
    project.

    Args:
        source: The teacher, with local files instead of MLflow's addresses.

    Raises:
        ConfigError: The factory's module cannot be imported.
        TeacherError: A program cannot be read.
    """
    files = list(source_files(source).values())
    states = [[path.name, *file_state(path)] for path in files]
    address = json_digest({"model": source.model, "weights": source.weights, "files": states})
    noted = read_note(_NOTE, dict[str, str]) or {}
    if address in noted:
        return noted[address]
    start = time.time_ns()
    found = source_digest(source)
    if are_old(map(file_state, files), start):
        write_json(_NOTE, dict([*noted.items(), (address, found)][-_KEPT_DIGESTS:]))
    return found


def student_digest(network: str) -> str:
    """Return the SHA-256 of the file that defines a student's network; empty for a network of a package.

    Args:
        network: The name in `distillation.student`.

    Raises:
        ConfigError: The factory's module cannot be imported.
    """
    file = factory_file(network)
    return file_sha256(file) if file else ""
