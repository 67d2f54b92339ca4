"""The MLflow that this project uses: that of the environment, or else the store in the project's folder.

MLflow takes seconds to import, so nothing here imports it before it is needed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from dfkd_tasks.caching.workspace import STORE
from dfkd_tasks.processes.background import running
from dfkd_tasks.records.foreign import without_secrets

__all__ = [
    "ARTIFACTS",
    "REGISTRY",
    "TRACKING",
    "artifact_folder",
    "described_store",
    "is_own_store",
    "is_own_store_missing",
    "is_server",
    "new_artifacts",
    "page_command",
    "pages",
    "publication_place",
    "registry_uri",
    "run_page",
    "sqlite_file",
    "tracking_uri",
    "use_store",
    "version_page",
]

TRACKING = "MLFLOW_TRACKING_URI"
"""Environment variable with the address of the MLflow that keeps runs and their files."""
REGISTRY = "MLFLOW_REGISTRY_URI"
"""Environment variable with the address of another MLflow that keeps registered models."""

ARTIFACTS = Path("mlartifacts")
"""Folder beside a database file with the files of its runs."""

_ROOT = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///")


def tracking_uri() -> str:
    """Return the address of the MLflow that keeps runs: MLFLOW_TRACKING_URI, or the file in the current project."""
    return os.environ.get(TRACKING) or f"sqlite:///{STORE.resolve()}"


def registry_uri() -> str:
    """Return the address of the MLflow that keeps registered models: MLFLOW_REGISTRY_URI, or that of the runs."""
    return os.environ.get(REGISTRY) or tracking_uri()


def use_store() -> None:
    """Set MLflow's address for this process, which may have been another; MLflow reads that of the registry itself."""
    import mlflow

    named = os.environ.get(TRACKING)
    mlflow.set_tracking_uri(tracking_uri())
    if not named:
        # MLflow sets it too, and another project of this process would take it for the user's.
        os.environ.pop(TRACKING, None)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite address, relative to the project if it is there so; None for other addresses."""
    begin = _SQLITE.match(uri)
    return Path(unquote(uri[begin.end() :].partition("?")[0])) if begin else None


def is_own_store() -> bool:
    """Return whether runs go to the file in the project's folder."""
    file = sqlite_file(tracking_uri())
    return file is not None and file.resolve() == STORE.resolve()


def is_own_store_missing() -> bool:
    """Return whether runs go to the file in the project's folder, and none has gone there yet."""
    return is_own_store() and not STORE.is_file()


def is_server(uri: str) -> bool:
    """Return whether an address is that of a server, and not that of a database or a folder."""
    return urlsplit(uri).scheme in ("http", "https")


def described_store() -> str:
    """Return which MLflow is used, without passwords."""
    tracking, registry = tracking_uri(), registry_uri()
    text = f"{STORE} in this folder" if is_own_store() else f"{without_secrets(tracking)} ({TRACKING})"
    return text if registry == tracking else f"{text}; models in {without_secrets(registry)} ({REGISTRY})"


def publication_place() -> str:
    """Return which MLflow has a publication, without passwords; empty for the project's own, which moves with it."""
    return "" if described_store() == f"{STORE} in this folder" else described_store()


def artifact_folder(experiment: str, store: Path = STORE) -> Path:
    """Return the folder for the files of a new experiment, which no name leads out of the folder beside the database.

    Args:
        experiment: Name of the experiment.
        store: File of the database.
    """
    name = re.sub(r"[^\w.-]+", "-", experiment).strip(".-") or "experiment"
    return (store.parent / ARTIFACTS).resolve() / name


def new_artifacts(experiment: str) -> str | None:
    """Return the address for the files of a new experiment, None if MLflow's server chooses it."""
    uri = tracking_uri()
    if is_server(uri) or urlsplit(uri).scheme in ("", "file", "databricks"):
        return None
    file = sqlite_file(uri)
    folder = artifact_folder(experiment, file or STORE)
    # A database without a server has no place for files of its own.
    root = os.environ.get(_ROOT) if not is_own_store() else None
    return f"{root.rstrip('/')}/{folder.name}" if root else folder.as_uri()


def pages() -> str:
    """Return the address of MLflow's pages if a server shows them, that of `dfkd up` for the project's own store."""
    uri = tracking_uri()
    if is_server(uri):
        return without_secrets(uri).rstrip("/")
    page = running("mlflow") if is_own_store() else None
    return page.url if page else ""


def page_command() -> str:
    """Return the command that shows MLflow's pages, the address of the page if a server shows it."""
    uri = tracking_uri()
    if address := pages():
        return address
    file = sqlite_file(uri)
    address = f"sqlite:///{STORE}" if is_own_store() else without_secrets(uri)
    # Experiments that are made on the page have their files in the same folder.
    root = ARTIFACTS if file is None or is_own_store() else file.parent / ARTIFACTS
    return (
        f"MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri {address} "
        f"--default-artifact-root {root} --host 127.0.0.1"
    )


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page; call it only if there are `pages`."""
    return f"{pages()}/#/experiments/{experiment_id}/runs/{run_id}"


def version_page(model: str, number: str) -> str:
    """Return the address of a version's page, empty if no server shows it."""
    uri = registry_uri()
    root = without_secrets(uri).rstrip("/") if is_server(uri) else pages() if uri == tracking_uri() else ""
    return f"{root}/#/models/{quote(model)}/versions/{number}" if root else ""
