"""The answer to a run that has nothing to do, from the states of files alone, without importing torch or DVC.

A run that found nothing to do notes the state of every file that this depends on. If all states are the same at the
next run, its answer is too. A state is that which git trusts: size, inode and time stamps.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dfkd_core.common.digests import write_json
from dfkd_flows.session.prefect_settings import users_address
from dfkd_tasks.caching.file_states import FileState, are_old, file_state

__all__ = ["States", "known_answer"]

_NOTE = Path(".dfkd/unchanged.json")
_CACHES = ("__pycache__",)
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


def known_answer(project: Path) -> str | None:
    """Return the answer of the last run in a project if it had nothing to do and no file has changed; else None."""
    try:
        note = json.loads((project / _NOTE).read_text(encoding="utf-8"))
        if note["services"] != _services():
            return None
        return str(note["answer"]) if States(note["watched"], project).of_files == note["states"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class States:
    """The states of files and of all files in folders, at the moment of the call."""

    def __init__(self, watched: Iterable[Path | str], project: Path = Path()) -> None:
        """Look at the paths, which are absolute or relative to the project."""
        self._watched = sorted({str(path) for path in watched})
        self._time_ns = time.time_ns()
        self.of_files: dict[str, FileState] = dict(_states(project, self._watched))

    @property
    def are_old(self) -> bool:
        """Whether no file had changed in the two seconds before."""
        return are_old(self.of_files.values(), self._time_ns)

    def note_answer(self, answer: Callable[[], str], notes: Iterable[Path] = ()) -> None:
        """Note the answer of a run in the current folder if the files are old and have the same states now.

        Args:
            answer: Returns the text that the run would print if it had nothing to do.
            notes: More files that the text depends on, which the run itself writes, at any time.
        """
        now = States([*self._watched, *notes])
        if not self.are_old or not self.of_files.items() <= now.of_files.items():
            _NOTE.unlink(missing_ok=True)
            return
        content = {"watched": now._watched, "states": now.of_files, "services": _services(), "answer": answer()}
        write_json(_NOTE, content)


def _services() -> str:
    """Return a digest of the addresses of services, which may hold passwords."""
    server = users_address()
    named = [*(os.environ.get(name) for name in _ADDRESSES), server and server.url]
    return hashlib.sha256(repr(named).encode()).hexdigest()


def _states(project: Path, watched: Iterable[str]) -> Iterator[tuple[str, FileState]]:
    """Yield the state of each file by its path; empty for one that does not exist."""
    for name in watched:
        path = os.path.join(project, name)
        if not os.path.isdir(path):
            yield name, file_state(path)
        for folder, folders, files in os.walk(path):
            folders[:] = set(folders) - set(_CACHES)
            for file in files:
                found = os.path.join(folder, file)
                yield name + found.removeprefix(path), file_state(found)
