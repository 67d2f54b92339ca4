"""A published student outside of dfkd: asked through MLflow's own server, and loaded in an environment of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import load_model
from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.caching.workspace import StudentFiles

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CHAMPION = "models:/dfkd-student-digits@champion"
IMAGES = np.random.default_rng(0).random((3, 1, 32, 32), np.float32)
# As `make setup` does it: with uv and pip's configuration.
INSTALL = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from install import install
install(pathlib.Path(sys.argv[2]), "-r", sys.argv[3])
"""
ASK = """
import importlib.util, json, sys
import mlflow
import numpy as np

student = mlflow.pyfunc.load_model(sys.argv[1])
images = np.random.default_rng(0).random((3, 1, 32, 32), np.float32)
answers = [*student.predict(images)["logits"], *student.predict([sys.argv[2]])["logits"]]
known = [name for name in ("dfkd_core", "dfkd_tasks", "dfkd_flows") if importlib.util.find_spec(name)]
print(json.dumps({"logits": answers, "known": known, "metadata": student.metadata.metadata}))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a published student."""
    folder = tmp_path_factory.mktemp("published")
    script = ROOT / "tests/fixtures/publications.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder), "first", "none"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def student(published: Path) -> Classifier:
    return load_model(published / StudentFiles("default").network)


def seven() -> str:
    """Return a picture of the student's size as base64 of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray((IMAGES[0, 0] * 255).astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def expected(student: Classifier) -> list[list[float]]:
    """Return the logits of the images, and of the picture."""
    picture = (IMAGES[:1] * 255).astype(np.uint8).astype(np.float32) / 255
    with torch.no_grad():
        return student(torch.from_numpy(np.concatenate([IMAGES, picture]))).tolist()


def ask(url: str, inputs: Any) -> tuple[int, Any]:
    """Return the status and the answer of a server."""
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_champion__is_served_by_mlflow(published: Path, student: Classifier, serve: Callable[..., Any]) -> None:
    place = ("--env-manager", "local", "--host", "127.0.0.1", "--port", "{port}")
    # MLflow starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{published}/mlflow.db", "PATH": path}
    server = serve("mlflow", "models", "serve", "-m", CHAMPION, *place, page="/ping", **environment)
    status, arrays = ask(server.url, IMAGES.tolist())
    _, pictures = ask(server.url, [seven()])
    assert status == 200
    rows = [*arrays["predictions"], *pictures["predictions"]]
    np.testing.assert_allclose([row["logits"] for row in rows], expected(student), rtol=1e-4, atol=1e-5)
    assert [int(row["label"]) for row in rows] == np.argmax(expected(student), axis=1).tolist()
    assert all(0.1 <= row["probability"] <= 1 for row in rows)
    assert ask(server.url, IMAGES[0].tolist()) == (
        400,
        {
            "error_code": "INVALID_PARAMETER_VALUE",
            "message": "Images must have the shape (n, 1, 32, 32) with n of at least 1, got (1, 32, 32).",
        },
    )


@pytest.mark.timeout(1800)
def test_champion__is_loaded_in_a_fresh_environment_from_its_own_requirements(
    published: Path, student: Classifier, tmp_path: Path
) -> None:
    [model] = published.glob("mlartifacts/dfkd/models/*/artifacts")
    shutil.copytree(model, tmp_path / "model")
    python = tmp_path / "venv/bin/python"
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MLFLOW"))
    }
    steps: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", tmp_path / "venv"],
        [sys.executable, "-c", INSTALL, ROOT / ".ci", python, tmp_path / "model/requirements.txt"],
        [python, "-I", "-c", ASK, tmp_path / "model", seven()],
    ]
    for command in steps:
        environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "UV_TORCH_BACKEND": "cpu", **own}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["known"] == []
    assert found["metadata"]["class_names"] == [str(digit) for digit in range(10)]
    np.testing.assert_allclose(found["logits"], expected(student), rtol=1e-4, atol=1e-5)
