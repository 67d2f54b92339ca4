"""The page of a run in MLflow, on a store of its own."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.mlflow_store.pages import fetch_page, log_page
from dfkd_tasks.mlflow_store.publishing import open_store
from dfkd_tasks.mlflow_store.runs import logged_run


def test_page__is_logged_once_and_fetched(store: Path) -> None:
    with mlflow.start_run(experiment_id=open_store("pages"), run_name="mine") as run:
        mlflow.log_metric("student.accuracy", 0.5)
    run_id = run.info.run_id
    with pytest.raises(DfkdError, match=r"has no report\.html in MLflow"):
        fetch_page(run_id, Path("fetched"))
    page = Path("report.html")
    for text in ("first", "second"):
        page.write_text(text)
        log_page(run_id, page)
    assert fetch_page(run_id, Path("fetched")).read_text() == "first"
    found = logged_run(run_id)
    assert found
    assert (found.name, found.figures) == ("mine", {"student.accuracy": 0.5})
    assert logged_run("0" * 32) is None
