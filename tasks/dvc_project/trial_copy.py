"""A copy of the project for one run with other parameters, which leaves the project as it is even if it is killed.

It has parameters, dvc.lock and results of its own, and shares all other files and DVC's cache with the project.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd_tasks.caching.code_file import CODE_FILE, PIPELINE
from dfkd_tasks.caching.trust import TRUSTED
from dfkd_tasks.caching.workspace import METRICS, REPORTS, STATE, STORE, STUDENTS, TEACHERS, WORK
from dfkd_tasks.dvc_project.files import config_elsewhere
from dfkd_tasks.dvc_project.status import LOCK

__all__ = ["TRIAL", "trial_copy"]

TRIAL = STATE / "trial"
"""The copy. It stays if a run is killed or fails, for its finished shards."""

_DVC = Path(".dvc")
_COPIED = (Path("params.yaml"), PIPELINE, LOCK, CODE_FILE, Path(".dvcignore"), STATE / TRUSTED)
_RESULTS = TEACHERS.parent
_NOT_LINKED = {".git", ".gitignore", *(path.name for path in (_DVC, STATE, _RESULTS, METRICS, REPORTS))}


@contextmanager
def trial_copy() -> Iterator[None]:
    """Work in a copy of the current project, which is deleted if the block succeeds. Hold the project's lock."""
    project = Path.cwd()
    copy = _make(project)
    os.chdir(copy)
    try:
        yield
        shutil.rmtree(copy)
    finally:
        os.chdir(project)


def _make(project: Path) -> Path:
    copy = project / TRIAL
    _clear(copy)
    (copy / STATE).mkdir(parents=True, exist_ok=True)
    (copy / _DVC).mkdir()
    config = copy / _DVC / "config"
    # It may hold the credentials of .dvc/config.local.
    config.touch(mode=0o600)
    config.write_text(config_elsewhere(), encoding="utf-8")
    for path in _COPIED:
        if path.is_file():
            shutil.copyfile(path, copy / path)
    _link(project, copy, _NOT_LINKED | {path.name for path in _COPIED})
    # Files of the user's in the folder of the results.
    _link(project / _RESULTS, copy / _RESULTS, {TEACHERS.name, STUDENTS.name})
    return copy


def _clear(copy: Path) -> None:
    """Delete an earlier copy, but not its work in progress, which is addressed by its inputs. No link is followed."""
    if copy.is_symlink() or copy.is_file():
        copy.unlink()
    kept = (copy / WORK.parts[0], copy / WORK)
    for folder in (copy, kept[0]):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif path not in kept:
                shutil.rmtree(path)


def _link(source: Path, target: Path, left_out: Collection[str]) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir() if source.is_dir() else ():
        if path.name not in left_out and not path.name.startswith(STORE.name):
            (target / path.name).symlink_to(path)
