"""What is written to MLflow, on a store of its own."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric

from tasks.publishing import log_figures, open_store


def test_log_figures__takes_more_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    experiment = open_store("many")
    try:
        metrics = [Metric("loss", 1 / epoch, 0, epoch) for epoch in range(1, 1203)]
        with mlflow.start_run(experiment_id=experiment) as run:
            log_figures(run.info.run_id, metrics, {f"name.{number}": number for number in range(120)})
        client = mlflow.MlflowClient()
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 1202
        assert client.get_run(run.info.run_id).data.params["name.119"] == "119"
    finally:
        mlflow.set_tracking_uri(before)
