"""What is written to MLflow and read from it, on a store of its own."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Metric

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_tasks.mlflow_store.aliases import Version
from dfkd_tasks.mlflow_store.figures import NOT_FINITE_TAG, log_figures
from dfkd_tasks.mlflow_store.inputs import Images
from dfkd_tasks.mlflow_store.publishing import (
    RESULTS_TAG,
    discard_unfinished,
    find_publication,
    open_store,
)
from dfkd_tasks.mlflow_store.reevaluation import log_reevaluation
from dfkd_tasks.mlflow_store.student import log_student

NAME = "dfkd-student-digits"


def test_log_figures__takes_more_than_one_batch(store: Path) -> None:
    metrics = [Metric("loss", 1 / epoch, 0, epoch) for epoch in range(1, 1203)]
    with mlflow.start_run(experiment_id=open_store("many")) as run:
        log_figures(run.info.run_id, metrics, {f"name.{number}": number for number in range(120)})
    client = mlflow.MlflowClient()
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1202
    assert client.get_run(run.info.run_id).data.params["name.119"] == "119"


def test_log_figures__a_long_parameter_is_whole_and_what_is_not_finite_is_named(store: Path) -> None:
    names = tuple(f"class {number}" for number in range(1000))
    metrics = [Metric("loss", float("nan"), 0, 1), Metric("loss", 0.5, 0, 2), Metric("ece", float("inf"), 0, 0)]
    with mlflow.start_run(experiment_id=open_store("long")) as run:
        log_figures(run.info.run_id, metrics, {"teacher.source.class_names": names})
    value = run_data(run).params["teacher.source.class_names"]
    assert value == f"{len(str(names))} characters, see the run's file parameters/teacher.source.class_names.txt"
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/parameters/teacher.source.class_names.txt") == str(
        names
    )
    assert run_data(run).metrics == {"loss": 0.5}
    query = f"tags.`{NOT_FINITE_TAG}` LIKE '%ece%'"
    assert [found.info.run_id for found in search(query)] == [run.info.run_id]


def run_data(run):
    return mlflow.get_run(run.info.run_id).data


def search(query: str):
    return mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list")


def test_log_student__is_loaded_on_the_cpu_where_there_is_a_gpu(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1"
    )
    student, images = build_classifier(card, seed=0).eval(), np.random.default_rng(0).random((5, 1, 32, 32), np.float32)
    # MLflow asks no more than this before it chooses the GPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with mlflow.start_run(experiment_id=open_store("gpu")):
        uri = log_student(student)
    answers = mlflow.pyfunc.load_model(uri).predict(images)
    assert "Failed to validate" not in caplog.text
    with torch.no_grad():
        expected = student(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.stack(answers["logits"]), expected, rtol=1e-4, atol=1e-5)


def test_open_store__restores_an_experiment_that_was_deleted(store: Path) -> None:
    with mlflow.start_run(experiment_id=open_store("dfkd")) as run:
        pass
    mlflow.delete_experiment(open_store("dfkd"))
    with mlflow.start_run(experiment_id=open_store("dfkd")):
        pass
    assert mlflow.get_run(run.info.run_id).info.lifecycle_stage == "active"


def test_open_store__a_name_with_slashes_keeps_its_files_in_the_project(store: Path) -> None:
    found = mlflow.get_experiment(open_store("/team/dfkd"))
    assert found.name == "/team/dfkd"
    assert Path(found.artifact_location.removeprefix("file://")) == store.resolve().parent / "mlartifacts" / "team-dfkd"


def test_open_store__that_is_killed_while_it_makes_the_store_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", stop)
    with pytest.raises(KeyboardInterrupt):
        open_store("dfkd")
    assert list(tmp_path.iterdir()) == []


def test_find_publication__needs_the_end_of_the_publication_and_its_version(store: Path) -> None:
    experiment = open_store("dfkd")
    client = mlflow.MlflowClient()
    tags = {RESULTS_TAG: "a", "dfkd.model": NAME, "dfkd.model_version": "1", "dfkd.promoted": "true"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    version = register(run_id=run_id)
    assert find_publication.fn("a") is None
    client.set_tag(run_id, "dfkd.published", "true")
    # In whatever experiment it is now.
    open_store("renamed")
    found = find_publication.fn("a")
    assert (found.run_id, found.version, found.promoted, found.reason) == (run_id, version, True, "not known")
    assert find_publication.fn("b") is None
    client.delete_model_version(NAME, version)
    assert find_publication.fn("a") is None


def test_discard_unfinished__leaves_finished_runs_and_those_of_others(store: Path) -> None:
    experiment = open_store("dfkd")
    client = mlflow.MlflowClient()
    killed, finished = (client.create_run(experiment, tags={RESULTS_TAG: digest}).info.run_id for digest in "ab")
    other = client.create_run(experiment).info.run_id
    client.set_terminated(finished)
    client.create_logged_model(experiment, "student", source_run_id=killed)
    discard_unfinished.fn()
    assert {run.info.run_id for run in search("")} == {finished, other}
    assert mlflow.get_run(killed).info.status == "FAILED"
    assert RESULTS_TAG not in mlflow.get_run(killed).data.tags
    assert client.search_logged_models([experiment]) == []
    discard_unfinished.fn()


def test_log_reevaluation__names_the_version_and_has_the_images_as_an_input(store: Path) -> None:
    version = Version(model=NAME, number="3", created=0.0, run_id="", tags={}, aliases=())
    images = Images(
        label="odd shop, test images",
        sha256="a" * 64,
        source="folder:shop",
        num_images=7,
        image_shape=(3, 8, 8),
        context="evaluation",
    )
    run_id = log_reevaluation(open_store("dfkd"), version, images, {"accuracy": 0.5}, {"accuracy": "50.00%"})
    run = mlflow.get_run(run_id)
    assert run.info.run_name == f"reevaluation of {NAME} 3"
    assert {"accuracy": "50.00%", "dfkd.reevaluated_version": "3"}.items() <= run.data.tags.items()
    assert (run.data.params, run.data.metrics) == ({"data.dataset": "folder:shop"}, {"student.accuracy": 0.5})
    [found] = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == (images.label, "a" * 8)
    assert json.loads(str(found.dataset.profile)) == {"num_images": 7, "sha256": "a" * 64}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "evaluation")]


def register(*, run_id: str | None = None, tags: dict[str, str] | None = None) -> str:
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(NAME)
    except mlflow.exceptions.MlflowException:
        pass
    made = client.create_model_version(NAME, source=str(Path.cwd()), run_id=run_id, tags=tags)
    client.set_registered_model_alias(NAME, "champion", made.version)
    return str(made.version)
