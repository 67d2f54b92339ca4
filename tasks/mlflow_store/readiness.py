"""Whether MLflow can take a run: the project's own store within milliseconds, another one within seconds.

MLflow takes seconds to import, so the store in a file is examined without it.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.workspace import STORE
from dfkd_tasks.caching.writing import write_fault
from dfkd_tasks.mlflow_store.addresses import (
    REGISTRY,
    TRACKING,
    artifact_folder,
    is_own_store,
    new_artifacts,
    registry_uri,
    sqlite_file,
    tracking_uri,
)
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["check_store", "has_version"]

_SECONDS_TO_WAIT = 0.5
# A check of all pages reads the whole file.
_LARGEST_CHECKED_BYTES = 64 * 2**20
_TABLES = {"experiments", "runs", "metrics", "params", "tags", "registered_models", "model_versions", "logged_models"}
# MLflow keeps a version that was deleted, in this stage.
_VERSION = "SELECT 1 FROM model_versions WHERE name = ? AND version = ? AND current_stage IS NOT 'Deleted_Internal'"
_NAME = re.compile(r"[\"'](\w+)[\"']")
_REVISION = re.compile(r"^(down_|)revision(?:: [^=]*)? = (.*)$", re.MULTILINE)


def check_store(experiment: str) -> None:
    """Check that a run can be logged and registered; a store that does not exist yet is made by the first run.

    Args:
        experiment: Name of MLflow's experiment. A server that has none of this name gets it.

    Raises:
        DfkdError: The store is damaged, locked, read-only, away, refuses the user or is of another version of MLflow,
            or files of its runs cannot be written.
    """
    tracking, registry = tracking_uri(), registry_uri()
    if file := sqlite_file(tracking):
        _check_file(STORE if is_own_store() else file, experiment)
    else:
        from dfkd_tasks.mlflow_store.services import check_tracking

        check_tracking(tracking, experiment)
    if registry == tracking:
        return
    if file := sqlite_file(registry):
        _check_file(file)
    else:
        location = new_artifacts(experiment)
        if location and urlsplit(location).scheme == "file":
            raise DfkdError(
                f"{REGISTRY}={without_secrets(registry)} cannot reach the files of runs in "
                f"{without_secrets(tracking)}, which are on this machine. Set {TRACKING} to a server too, or unset "
                f"{REGISTRY}"
            )
        from dfkd_tasks.mlflow_store.services import check_registry

        check_registry(registry)


def _check_file(path: Path, experiment: str | None = None) -> None:
    """Check an SQLite file, and the folder for the files of an experiment."""
    place = artifact_folder(experiment, path) if experiment else None
    if path.exists():
        if not path.is_file():
            raise DfkdError(f"{path} is a folder, not MLflow's store. Move it away: mv {path} {path}.old; dfkd run")
        try:
            with closing(_open(path)) as store:
                place = _examine(store, path, experiment) or place
        except sqlite3.Error as error:
            raise DfkdError(_sentence(path, error)) from None
    elif fault := write_fault(path.parent):
        raise DfkdError(f"MLflow's store {path} cannot be made ({fault}). Set another one in {TRACKING} or {REGISTRY}")
    if place and (fault := write_fault(place)):
        raise DfkdError(f"MLflow's files cannot be written into {place} ({fault}). Change its rights, then: dfkd run")


def has_version(name: str, version: str) -> bool:
    """Return whether the registry holds a version of a model; False if its file is missing or damaged.

    A server is not asked.
    """
    file = sqlite_file(registry_uri())
    if file is None:
        return True
    try:
        with closing(
            sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=_SECONDS_TO_WAIT)
        ) as store:
            found = store.execute(_VERSION, [name, version]).fetchone()
        return found is not None
    except sqlite3.Error as error:
        # A store that another process writes to is there, and its versions are not removed.
        return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=_SECONDS_TO_WAIT, isolation_level=None
    )


def _examine(store: sqlite3.Connection, path: Path, experiment: str | None) -> Path | None:
    """Check the store and return the folder of an experiment's files; None if it has none on this machine."""
    tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if path.stat().st_size <= _LARGEST_CHECKED_BYTES:
        [(state,)] = store.execute("PRAGMA quick_check(1)")
        if state != "ok":
            raise sqlite3.DatabaseError(state)
    if tables:
        _check_schema(store, path, tables)
    # As a real write: rights do not know of locks and of read-only mounts.
    store.execute("BEGIN IMMEDIATE")
    store.execute("CREATE TABLE dfkd_probe (value)")
    store.execute("ROLLBACK")
    found = (
        tables and store.execute("SELECT artifact_location FROM experiments WHERE name = ?", [experiment]).fetchone()
    )
    return _local_folder(found[0]) if found else None


def _check_schema(store: sqlite3.Connection, path: Path, tables: set[str]) -> None:
    if "alembic_version" not in tables or not tables >= _TABLES:
        raise DfkdError(f"{path} is not a whole store of MLflow: tables are missing. {_aside(path)}")
    found = store.execute("SELECT version_num FROM alembic_version").fetchone()
    version, known = found[0] if found else None, _revisions()
    if not known or version in known.keys() - set().union(*known.values()):
        return
    if version in known:
        raise DfkdError(
            f"{path} is of an older MLflow (schema {version}). Keep a copy and convert it: cp {path} "
            f"{path}.old && MLFLOW_DISABLE_TELEMETRY=true mlflow db upgrade sqlite:///{path}"
        )
    raise DfkdError(
        f"{path} is of another version of MLflow (schema {version}). Install that version, or start a new store: "
        f"mv {path} {path}.old; dfkd run"
    )


def _revisions() -> dict[str, set[str]]:
    """Return the revisions of the schema that the installed MLflow knows, each with those before it."""
    spec = find_spec("mlflow")
    found: dict[str, set[str]] = {}
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder, "store", "db_migrations", "versions").glob("*.py"):
            lines = {kind: set(_NAME.findall(value)) for kind, value in _REVISION.findall(path.read_text("utf-8"))}
            found |= {name: lines.get("down_", set()) for name in lines.get("", ())}
    return found


def _local_folder(location: str) -> Path | None:
    address = urlsplit(location)
    if address.scheme not in ("", "file"):
        return None
    return Path(unquote(address.path) if address.scheme else location)


def _sentence(path: Path, error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path} is locked by another process. End it (fuser {path} names it), then run the same command again"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return f"{path} cannot be written: {error}. Change its rights and those of its folder: chmod u+rw {path}"
    if name.startswith("SQLITE_FULL"):
        return f"{path} cannot be written: the disk is full. Free some space"
    return f"{path} is damaged: {error}. {_aside(path)}"


def _aside(path: Path) -> str:
    return f"Restore a copy, or start a new store: mv {path} {path}.old; dfkd run"
