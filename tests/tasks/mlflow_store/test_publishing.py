"""What is written to MLflow, on a store of its own."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Metric

from dfkd_core.models.classifier import ModelCard, build_classifier
from tasks.mlflow_store.publishing import log_figures, log_student, open_store


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


def test_log_student__is_loaded_on_the_cpu_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1"
    )
    student, images = build_classifier(card, seed=0).eval(), np.random.default_rng(0).random((5, 1, 32, 32), np.float32)
    before = mlflow.get_tracking_uri()
    experiment = open_store("gpu")
    try:
        # MLflow asks no more than this before it chooses the GPU.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with mlflow.start_run(experiment_id=experiment):
            uri = log_student(student)
        answers = mlflow.pyfunc.load_model(uri).predict(images)
    finally:
        mlflow.set_tracking_uri(before)
    assert "Failed to validate" not in caplog.text
    with torch.no_grad():
        np.testing.assert_allclose(answers, student(torch.from_numpy(images)).numpy(), rtol=1e-4, atol=1e-5)
