"""The project as DVC opens it, without what is damaged in DVC's notes on files."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from functools import cached_property
from pathlib import Path

from dvc.repo import Repo

__all__ = ["CheckedRepo"]


class CheckedRepo(Repo):  # type: ignore[misc]  # DVC has no types
    """A project whose notes on the states of files DVC can read."""

    @cached_property
    def site_cache_dir(self) -> str:
        """The folder of the notes, outside of the project. DVC makes them again if they are missing."""
        folder = str(super().site_cache_dir)
        for path in list(Path(folder).rglob("*.db")):
            if not _is_readable(path):
                shutil.rmtree(path.parent)
        return folder


def _is_readable(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as store:
            return bool(store.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.OperationalError:
        # Another process holds it, or it cannot be opened, which DVC reports.
        return True
    except sqlite3.DatabaseError:
        return False
