"""The project's own store after its folder was moved or copied: MLflow notes where files are with absolute paths."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dfkd_tasks.caching.workspace import STORE
from dfkd_tasks.mlflow_store.addresses import ARTIFACTS

__all__ = ["follow_move"]

# All columns of MLflow's tables with the place of a file.
_COLUMNS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}
_SECONDS_TO_WAIT = 5


def follow_move(project: Path) -> None:
    """Correct the paths in the project's own store if the folder was moved or copied since they were written.

    A store that cannot be read or written is left as it is: the check before a run reports it.

    Args:
        project: The project's folder.
    """
    store = project.resolve() / STORE
    if not store.is_file():
        return
    try:
        with closing(_open(store)) as opened:
            moves = dict(_moves(opened, store.parent / ARTIFACTS))
            if moves:
                _write(opened, moves)
    except sqlite3.Error:
        return


def _open(store: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{store.as_uri()}?mode=rw", uri=True, timeout=_SECONDS_TO_WAIT, isolation_level=None)


def _moves(store: sqlite3.Connection, home: Path) -> Iterator[tuple[str, str]]:
    """Yield the beginning of each address that lies in another folder `mlartifacts`, and what it is now.

    Files that exist there and not here stay there.
    """
    for (location,) in store.execute("SELECT DISTINCT artifact_location FROM experiments"):
        address = urlsplit(location or "")
        if address.scheme not in ("", "file"):
            continue
        place = Path(unquote(address.path) if address.scheme else location)
        is_here = (home / place.name).exists() or not place.exists()
        if place.parent.name == ARTIFACTS.name and place.parent != home and is_here:
            yield location, (home / place.name).as_uri() if address.scheme else str(home / place.name)


def _write(store: sqlite3.Connection, moves: dict[str, str]) -> None:
    # All or nothing, also if the process is killed.
    store.execute("BEGIN IMMEDIATE")
    for table, columns in _COLUMNS.items():
        for column in columns:
            for old, new in moves.items():
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, old, len(old) + 1, f"{old}/"],
                )
    store.execute("COMMIT")
