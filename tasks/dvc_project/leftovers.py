"""Puts right what a killed DVC leaves behind: locks of dead processes, half a dvc.lock, half entries of its caches."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import load_yaml
from voluptuous import Invalid

from dfkd_tasks.dvc_project.status import LOCK

__all__ = ["clear_dead_locks", "clear_half_runs", "set_aside_damaged_lock"]

_TEMPORARY = Path(".dvc/tmp")
_DAMAGED = Path(".dfkd/dvc.lock.damaged")
_LENGTH_OF_SHA256 = 64


def clear_dead_locks(folder: Path = _TEMPORARY) -> None:
    """Remove, from DVC's list of locked files, processes that are gone.

    DVC does so too, but not if a new process has the number of a dead one, and not if the list was cut off in writing.

    Args:
        folder: DVC's temporary folder.
    """
    path = folder / RWLOCK_FILE
    if not path.is_file():
        return
    # As DVC does: nobody changes the list while this is held.
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):
        try:
            held = SCHEMA(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, Invalid):
            path.unlink()
            return
        written = path.stat().st_mtime
        kept = {
            "write": {name: holder for name, holder in held["write"].items() if _holds(holder, written)},
            "read": {name: [one for one in holders if _holds(one, written)] for name, holders in held["read"].items()},
        }
        if kept != held:
            path.write_text(json.dumps(kept), encoding="utf-8")


def _holds(holder: Mapping[str, Any], written: float) -> bool:
    """Return whether a process that was noted at `written` still runs, and its number is not that of a later one."""
    try:
        process = psutil.Process(holder["pid"])
        return process.pid != os.getpid() and process.create_time() <= written and "dvc" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def set_aside_damaged_lock() -> str:
    """Move dvc.lock away if DVC cannot read it, and return a sentence on it; otherwise return an empty text.

    The stages then take their results from DVC's and Prefect's caches.
    """
    if not LOCK.is_file():
        return ""
    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(str(LOCK)))
    except (DvcException, Invalid, ValueError):
        _DAMAGED.parent.mkdir(exist_ok=True)
        LOCK.replace(_DAMAGED)
        return f"{LOCK} was damaged and is made again from the caches. The old file is {_DAMAGED}"
    return ""


def clear_half_runs(runs: Path) -> None:
    """Remove entries that were cut off in writing from DVC's cache of runs, and folders without an entry.

    DVC fails on such a folder, at every later run of its stage.

    Args:
        runs: The cache, with one folder per stage and inputs.
    """
    for folder in filter(Path.is_dir, runs.glob("*/*")):
        for half in [path for path in folder.iterdir() if not _is_whole(path)]:
            half.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_whole(entry: Path) -> bool:
    """Return whether the file has its final name, a SHA-256, and an end."""
    return len(entry.name) == _LENGTH_OF_SHA256 and entry.read_bytes().endswith(b"\n")
