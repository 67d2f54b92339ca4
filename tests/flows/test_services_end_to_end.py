"""A run on services of the user's own: MLflow with files in S3, a Prefect server named by a profile, DVC on S3."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

BUCKET = "results"
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
LOOPBACK = ("--host", "127.0.0.1", "--port", "{port}")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Place:
    """A project on services of its own."""

    workspace: Any
    s3: Any
    mlflow: Any
    prefect: Any

    def client(self) -> Any:
        """Return a client of S3."""
        return pytest.importorskip("boto3").client("s3", endpoint_url=self.s3.url)

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in S3."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [file["Key"] for page in pages for file in page.get("Contents", ()) if file["Key"].startswith(folder)]


@pytest.fixture(scope="module")
def place(make_workspace: Callable[[str], Any], serve: Callable[..., Any]) -> Place:
    for package in ("moto", "dvc_s3"):
        pytest.importorskip(package)
    os.environ.update(KEYS)
    s3 = serve("python", "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}", page="/moto-api/")
    pytest.importorskip("boto3").client("s3", endpoint_url=s3.url).create_bucket(Bucket=BUCKET)
    store = ("--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", f"s3://{BUCKET}/mlflow")
    mlflow_settings = {"MLFLOW_S3_ENDPOINT_URL": s3.url, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    mlflow = serve("mlflow", "server", *store, *LOOPBACK, "--workers", "1", page="/health", **KEYS, **mlflow_settings)
    prefect = serve("prefect", "server", "start", *LOOPBACK, page="/api/health")
    made = make_workspace("services")
    profiles = made.path.parent / "profiles.toml"
    profiles.write_text(f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{prefect.url}/api"\n')
    services = {"MLFLOW_TRACKING_URI": mlflow.url, "PREFECT_PROFILES_PATH": str(profiles)}
    made.environment.update({**KEYS, **services})
    made.run("dvc", "remote", "add", "--default", "--local", "far", f"s3://{BUCKET}/dvc")
    made.run("dvc", "remote", "modify", "--local", "far", "endpointurl", s3.url)
    return Place(made, s3, mlflow, prefect)


def test_run__uses_the_services_and_shows_their_pages(place: Place, small: dict[str, Any]) -> None:
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    output = place.workspace.run("dfkd", "run", *settings)
    published = place.workspace.read_json(".dfkd/students/default/published.json")
    assert f"MLflow     {place.mlflow.url}/#/experiments/1/runs/{published['run_id']}" in output
    assert f"DVC        far, s3://{BUCKET}/dvc" in output
    page = next(line.split()[-1] for line in output.splitlines() if line.startswith("  Prefect "))
    run_id = page.removeprefix(f"{place.prefect.url}/runs/flow-run/")
    with urllib.request.urlopen(f"{place.prefect.url}/api/flow_runs/{run_id}") as answer:
        assert json.load(answer)["state"]["type"] == "COMPLETED"
    assert len(place.files("dvc/files/md5")) > 4
    assert any(name.endswith("model.pt2") for name in place.files("mlflow"))
    # Nothing is left of the checks, and nothing is kept twice.
    assert not [name for name in place.files("") if "probe" in name]
    assert not [name for name in ("mlflow.db", "mlartifacts", "mlruns") if (place.workspace.path / name).exists()]
    assert "Nothing has changed" in place.workspace.run("dfkd", "run")


def test_doctor__names_the_services(place: Place) -> None:
    output = place.workspace.run("dfkd", "doctor")
    assert f"takes a run: {place.mlflow.url} (MLFLOW_TRACKING_URI)" in output
    assert f"{place.prefect.url}/api (profile team in" in output
    assert f"far, s3://{BUCKET}/dvc" in output


def test_services_that_go_away_in_a_run__get_the_results_from_publish(place: Place) -> None:
    output = ""
    with place.workspace.start("dfkd", "run", "--set", "distillation.epochs=3") as process:
        try:
            for line in process.stdout:
                output += line
                if line.startswith("distill:"):
                    place.mlflow.stop()
                    place.s3.stop()
            assert process.wait() == 1, output
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "agreement" in output
    assert f"No MLflow answers at MLFLOW_TRACKING_URI={place.mlflow.url}" in output
    assert "The results are kept, but not registered and not copied to the remote." in output
    assert output.rstrip().endswith("dfkd publish")
    assert "Traceback" not in output
    # Before any work.
    before = (place.workspace.path / "params.yaml").read_bytes()
    output = place.workspace.run("dfkd", "run", "--set", "distillation.epochs=9", code=1)
    assert "No MLflow answers" in output
    assert "DVC's remote 'far'" in output
    assert "distill:" not in output
    assert (place.workspace.path / "params.yaml").read_bytes() == before
    output = place.workspace.run("dfkd", "publish", code=1)
    assert "No MLflow answers" in output
    place.mlflow.start()
    place.s3.start()
    # The server of the tests forgets its files.
    place.client().create_bucket(Bucket=BUCKET)
    for _ in range(2):
        assert "Registered dfkd-student-digits version 2" in place.workspace.run("dfkd", "publish")
        assert len(place.files("dvc/files/md5")) > 4
    assert "Nothing has changed" in place.workspace.run("dfkd", "run")


def test_publish__refuses_results_that_are_older_than_the_parameters(place: Place) -> None:
    place.workspace.run("dvc", "repro", "--dry")
    path = place.workspace.path / "params.yaml"
    before = path.read_text()
    path.write_text(before.replace("epochs: 3", "epochs: 5"))
    try:
        assert "The results are older than what they depend on: distill" in place.workspace.run(
            "dfkd", "publish", code=1
        )
    finally:
        path.write_text(before)


def test_back_to_the_project_s_own_store__publishes_there_too(place: Place) -> None:
    output = place.workspace.run("dfkd", "run", MLFLOW_TRACKING_URI="")
    assert "the student is not registered yet" in output
    assert "MLflow     mlflow.db in this folder" in output
    assert (place.workspace.path / "mlflow.db").is_file()
