"""MLflow of the user's own: a real server takes a student; one that cannot is a sentence before any work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dfkd_core.errors import DfkdError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_tasks.mlflow_store.publishing import discard_unfinished, open_store, page_of, register_student
from dfkd_tasks.mlflow_store.readiness import check_store
from dfkd_tasks.mlflow_store.student import log_student

NAME = "dfkd-student-digits"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it


def test_a_real_server__takes_a_student_with_its_files(
    mlflow_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    check_store("dfkd")
    experiment = open_store("dfkd")
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1"
    )
    with mlflow.start_run(experiment_id=experiment) as run:
        uri = log_student(build_classifier(card, seed=0).eval())
    tags = {"dfkd.results_sha256": "a", "accuracy": "97.00%"}
    for note in ("first", "second"):
        assert register_student.fn(run.info.run_id, uri, NAME, tags, note=note, model_note=f"{note} model") == "1"
    # Descriptions that are there stay: a person may have written them.
    client = mlflow.MlflowClient()
    version, model = client.get_model_version(NAME, "1"), client.get_registered_model(NAME)
    assert (version.description, model.description) == ("first", "first model")
    assert tags.items() <= version.tags.items()
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))
    # The index has no builds like 2.13.0+cpu.
    assert "+" not in (folder / "requirements.txt").read_text()
    assert page_of(run.info.run_id) == f"{mlflow_server.url}/#/experiments/{experiment}/runs/{run.info.run_id}"
    # Nothing is left of the check, and nothing is written into the project.
    assert [path.name for path in (mlflow_server.folder / "files").rglob("dfkd-probe")] == []
    assert list(tmp_path.iterdir()) == []
    # Another project may be publishing there at this moment.
    other = mlflow.MlflowClient().create_run(experiment, tags={"dfkd.results_sha256": "b", "dfkd.origin": "c"})
    discard_unfinished.fn()
    assert mlflow.get_run(other.info.run_id).info.status == "RUNNING"


def fault(name: str = "dfkd") -> str:
    start = time.perf_counter()
    with pytest.raises(DfkdError) as caught:
        check_store(name)
    assert time.perf_counter() - start < 30
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, closed_port: int, scheme: str) -> None:
    uri = f"{scheme}://me:secret@127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert fault() == (
        f"No MLflow answers at MLFLOW_TRACKING_URI={scheme}://127.0.0.1:{closed_port}: Connection refused. Start it, "
        "or use the store in the project: unset MLFLOW_TRACKING_URI"
    )


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({"/version": (200, "2.14.1")}, "has version 2.14.1, and this one is 3."),
        ({"/get-by-name": (401, "You are not authenticated.")}, "MLflow refuses to be written at MLFLOW_TRACKING_URI="),
        ({"/get-by-name": (403, {"error_code": "PERMISSION_DENIED", "message": "no"})}, "MLflow refuses to be written"),
        ({}, "cannot be used: "),
    ],
)
def test_a_server_that_takes_no_run(
    monkeypatch: pytest.MonkeyPatch, answering: Callable[..., str], answers: Any, text: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering(answers).replace("//", "//me:secret@"))
    assert text in fault()


def test_files_that_this_machine_cannot_write(monkeypatch: pytest.MonkeyPatch, answering: Callable[..., str]) -> None:
    found = {"experiment": {"experiment_id": "1", "name": "dfkd", "lifecycle_stage": "active"}}
    found["experiment"]["artifact_location"] = "file:///proc/files"
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", answering({"/get-by-name": (200, found), "/set-experiment-tag": (200, {})})
    )
    assert fault().startswith("MLflow's files cannot be written into file:///proc/files: ")


def test_addresses_that_do_not_fit_together(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, answering: Callable[..., str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert "export MLFLOW_TRACKING_URI=sqlite:///./mlruns/mlflow.db" in fault()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://me:secret@127.0.0.1:{closed_port}")
    assert "Set MLFLOW_TRACKING_URI to a server too, or unset MLFLOW_REGISTRY_URI" in fault()
    found = {"experiment": {"experiment_id": "1", "lifecycle_stage": "active", "artifact_location": str(Path.cwd())}}
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", answering({"/get-by-name": (200, found), "/set-experiment-tag": (200, {})})
    )
    assert fault().startswith(f"No MLflow answers at MLFLOW_REGISTRY_URI=http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:////proc/x/models.db")
    assert fault().startswith("MLflow's store /proc/x/models.db cannot be made")
