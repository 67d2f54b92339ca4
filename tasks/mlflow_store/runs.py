"""Earlier runs of a student, read from MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import mlflow
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from dfkd_core.errors import DfkdError
from dfkd_tasks.mlflow_store.addresses import described_store, is_own_store_missing, use_store
from dfkd_tasks.mlflow_store.aliases import MISSING
from dfkd_tasks.mlflow_store.publishing import DONE_TAG, RESULTS_TAG, STUDENT_TAG
from dfkd_tasks.records.foreign import reason

__all__ = ["LoggedRun", "PublishedRun", "logged_run", "published_runs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """A run whose student is registered."""

    results_sha256: str
    """Digest of its results."""
    time: datetime
    """When it was logged, in the local time zone."""
    figures: Mapping[str, float]
    """Its figures by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """Any run."""

    name: str
    figures: Mapping[str, float]
    """Its figures by name."""


def logged_run(run_id: str) -> LoggedRun | None:
    """Return a run of the MLflow that is used now by its id; None if there is none, or no store.

    Raises:
        DfkdError: MLflow cannot be used.
    """
    if is_own_store_missing():
        return None
    use_store()
    try:
        found = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code in MISSING:
            return None
        raise DfkdError(f"MLflow, {described_store()}: {reason(error)}") from error
    return LoggedRun(name=found.info.run_name or run_id[:8], figures=dict(found.data.metrics))


def published_runs(student: str, *, limit: int) -> list[PublishedRun]:
    """Return the last runs of a student in the MLflow that is used now, the newest first; none without a store.

    Args:
        student: Name of the student in the project.
        limit: Largest number of runs.

    Raises:
        DfkdError: MLflow cannot be used.
    """
    if is_own_store_missing():
        return []
    use_store()
    try:
        found: list[Run] = mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"tags.`{STUDENT_TAG}` = '{student}' and tags.`{DONE_TAG}` = 'true'",
            run_view_type=ViewType.ACTIVE_ONLY,
            order_by=["attributes.start_time DESC"],
            max_results=limit,
            output_format="list",
        )
    except MlflowException as error:
        raise DfkdError(f"MLflow, {described_store()}: {reason(error)}") from error
    return [_published(run) for run in found]


def _published(run: Run) -> PublishedRun:
    return PublishedRun(
        results_sha256=run.data.tags.get(RESULTS_TAG, ""),
        time=datetime.fromtimestamp(run.info.start_time / 1000).astimezone(),
        figures=dict(run.data.metrics),
    )
