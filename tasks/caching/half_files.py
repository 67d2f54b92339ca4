"""Files that killed processes were writing when they ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["clear_half_files"]

# As `write_atomically` names them.
_HALF = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")
_WRITTEN_AT_THE_TOP = (
    ".dvcignore",
    ".gitignore",
    "README.md",
    "code.json",
    "dvc.yaml",
    "params.yaml",
    "prefect.yaml",
)
_FOLDERS = ("artifacts", "metrics", "reports")


def clear_half_files(project: Path = Path(".")) -> None:
    """Delete them where users look and where DVC hashes. Call it while nobody else writes there.

    Those in the work folder are deleted with it.
    """
    for path in _half_files(project):
        path.unlink(missing_ok=True)


def _half_files(project: Path) -> Iterator[Path]:
    for path in project.glob(".*"):
        found = _HALF.fullmatch(path.name)
        if found and found["name"] in _WRITTEN_AT_THE_TOP:
            yield path
    for folder in _FOLDERS:
        yield from (path for path in (project / folder).rglob(".*") if _HALF.fullmatch(path.name) and path.is_file())
