"""A project that was moved or copied finds its files, and does not write into the old folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import mlflow
import pytest

from dfkd_core.common.digests import file_sha256
from dfkd_tasks.mlflow_store.moved import follow_move
from dfkd_tasks.mlflow_store.publishing import open_store

NAME = "net"


def log() -> str:
    """Log a run with a file, a logged model and a version of a registered model, as publishing does."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(open_store("dfkd")).info.run_id
    client.log_text(run_id, "figure", "a.txt")
    model = client.create_logged_model(open_store("dfkd"), "student", source_run_id=run_id)
    folder = Path("files")
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text("model")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model(NAME)
    client.create_model_version(NAME, f"models:/{model.model_id}")
    return str(run_id)


def check(run_id: str, home: Path) -> None:
    open_store("dfkd")
    uri = mlflow.get_run(run_id).info.artifact_uri
    assert str(uri).startswith((home / "mlartifacts").as_uri())
    assert mlflow.artifacts.load_text(f"{uri}/a.txt") == "figure"
    path = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))
    assert path.is_relative_to(home)
    assert (path / "MLmodel").read_text() == "model"


@pytest.mark.parametrize("name", ["b", "with a blank, ü and 100%"])
def test_follow_move__after_a_move_and_after_a_copy(store: Path, tmp_path: Path, name: str) -> None:
    first, copy, moved = tmp_path / "a", tmp_path / name, tmp_path / f"{name} c"
    first.mkdir()
    shutil.move(store, first)
    os.chdir(first)
    run_id = log()
    # The store was made in another folder.
    follow_move(first)
    before = file_sha256(Path("mlflow.db"))
    follow_move(first)
    assert file_sha256(Path("mlflow.db")) == before
    shutil.copytree(first, copy)
    os.chdir(copy)
    follow_move(copy)
    check(run_id, copy)
    first.rename(moved)
    os.chdir(moved)
    follow_move(moved)
    check(run_id, moved)
    check_copy = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db").get_run(run_id).info.artifact_uri
    assert str(check_copy).startswith(copy.as_uri())


def test_follow_move__leaves_places_of_the_user_s_choice_and_damaged_stores(store: Path, tmp_path: Path) -> None:
    (tmp_path / "shared" / "mlartifacts" / "there").mkdir(parents=True)
    chosen = {
        "bucket": "s3://bucket/mlartifacts/bucket",
        "there": (tmp_path / "shared/mlartifacts/there").as_uri(),
        "far": "file:///nowhere/else/far",
    }
    open_store("dfkd")
    for name, place in chosen.items():
        mlflow.create_experiment(name, artifact_location=place)
    follow_move(tmp_path)
    assert {name: mlflow.get_experiment_by_name(name).artifact_location for name in chosen} == chosen
    store.write_text("half a file")
    follow_move(tmp_path)
    assert store.read_text() == "half a file"
    store.unlink()
    follow_move(tmp_path)
    assert not store.exists()
