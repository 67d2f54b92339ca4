"""Which MLflow is used: the environment's, or else the file in the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfkd_tasks.mlflow_store.addresses import (
    described_store,
    is_own_store,
    new_artifacts,
    page_command,
    publication_place,
    registry_uri,
    run_page,
    tracking_uri,
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_a_setting__the_project_has_a_store_of_its_own(project: Path) -> None:
    assert tracking_uri() == registry_uri() == f"sqlite:///{project}/mlflow.db"
    assert (is_own_store(), publication_place()) == (True, "")
    assert new_artifacts("dfkd") == (project / "mlartifacts/dfkd").as_uri()
    assert "sqlite:///mlflow.db --default-artifact-root mlartifacts" in page_command()


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///{}/mlflow.db"])
def test_the_project_s_own_file__may_also_be_named(project: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(project))
    assert (is_own_store(), publication_place()) == (True, "")


def test_a_server__keeps_files_where_it_wants_and_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host:5000/ml/")
    assert not is_own_store()
    assert new_artifacts("dfkd") is None
    assert run_page("3", "abc") == "https://host:5000/ml/#/experiments/3/runs/abc"
    assert described_store() == publication_place() == "https://host:5000/ml/ (MLFLOW_TRACKING_URI)"
    assert page_command() == "https://host:5000/ml"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:secret@other")
    assert described_store().endswith("; models in http://other (MLFLOW_REGISTRY_URI)")


def test_a_database__has_its_files_beside_it_or_where_the_user_says(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////team/ml.db")
    assert new_artifacts("a/b") == "file:///team/mlartifacts/a-b"
    assert "--default-artifact-root /team/mlartifacts " in page_command()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    assert new_artifacts("dfkd") == (project / "mlartifacts/dfkd").as_uri()
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/ml/")
    assert new_artifacts("dfkd") == "s3://bucket/ml/dfkd"
    assert "secret" not in page_command()
