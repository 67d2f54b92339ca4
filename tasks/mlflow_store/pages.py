"""The page of a run, `report.html`, as a file of its run in MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from dfkd_core.errors import DfkdError
from dfkd_tasks.mlflow_store.addresses import use_store
from dfkd_tasks.records.foreign import reason

__all__ = ["PAGE_FILE", "fetch_page", "log_page"]

PAGE_FILE = "report.html"


def log_page(run_id: str, page: Path) -> None:
    """Add a page to a finished run, unless it has one: a run keeps what was known when it ended."""
    use_store()
    client = mlflow.MlflowClient()
    if all(found.path != PAGE_FILE for found in client.list_artifacts(run_id)):
        client.log_artifact(run_id, str(page))


def fetch_page(run_id: str, folder: Path) -> Path:
    """Copy the page of a run into a folder and return its path.

    Raises:
        DfkdError: The run has none, or MLflow cannot be used.
    """
    use_store()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        mlflow.MlflowClient().download_artifacts(run_id, PAGE_FILE, str(folder))
    except (MlflowException, OSError) as error:
        raise DfkdError(f"The run {run_id} has no {PAGE_FILE} in MLflow: {reason(error)}") from error
    return folder / PAGE_FILE
