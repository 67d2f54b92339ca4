"""Digests of the files that a teacher is read from and of the file that defines a student."""

from __future__ import annotations

import time
from pathlib import Path

from dfkd_core.common.digests import file_sha256, json_digest, write_json
from dfkd_core.models.factories import factory_file
from dfkd_core.teachers.loading import source_digest, source_files
from dfkd_core.teachers.source import SourceConfig
from dfkd_tasks.caching.stored import read_note
from dfkd_tasks.caching.workspace import STATE

__all__ = ["student_digest", "teacher_digest"]

_NOTE = STATE / "teacher_files.json"
_KEPT_DIGESTS = 50
# A file can change twice within the resolution of a file system's clock, so the times of a young file prove nothing.
_YOUNG_NS = 2_000_000_000


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
    states = [_state(path) for path in files]
    address = json_digest({"model": source.model, "weights": source.weights, "files": states})
    noted = read_note(_NOTE, dict[str, str]) or {}
    if address in noted:
        return noted[address]
    start = time.time_ns()
    found = source_digest(source)
    if all(start - path.stat().st_ctime_ns > _YOUNG_NS for path in files):
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


def _state(path: Path) -> list[int | str]:
    found = path.stat()
    return [path.name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
