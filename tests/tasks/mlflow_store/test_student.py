"""The model that MLflow loads and serves: its answers, what it takes, and what it refuses in one sentence."""

from __future__ import annotations

import ast
import base64
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image
from starlette.testclient import TestClient

from dfkd_core.data.fitting import resize_and_crop, with_channels
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_tasks.mlflow_store.publishing import open_store
from dfkd_tasks.mlflow_store.student import log_student

NAMES = ("cat", "dog", "eel")
CARD = ModelCard(
    network="lenet5",
    in_channels=1,
    image_size=32,
    num_classes=3,
    mean=(0.3,),
    std=(0.3,),
    layer="fc1",
    class_names=NAMES,
)
STUDENT = build_classifier(CARD, seed=0).eval()
IMAGES = np.random.default_rng(0).random((5, 1, 32, 32), np.float32)
SHAPE = "(n, 1, 32, 32) with n of at least 1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    """Return the address of a logged student."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("student"))
        shutil.copy2(empty_store, "mlflow.db")
        with mlflow.start_run(experiment_id=open_store("dfkd")):
            uri = log_student(STUDENT)
        yield uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it


@pytest.fixture(scope="module")
def served(address: str) -> Any:
    return mlflow.pyfunc.load_model(address)


@pytest.fixture(scope="module")
def server(served: Any) -> TestClient:
    """Return a client of MLflow's own server."""
    return TestClient(scoring_server.init(served))


def logits_of(student: Classifier, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return student(torch.from_numpy(images)).numpy()


def in_base64(picture: Image.Image, form: str, **options: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return base64.b64encode(stream.getvalue()).decode()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_answers__have_label_probability_and_logits(served: Any) -> None:
    answers = served.predict(IMAGES)
    expected = logits_of(STUDENT, IMAGES)
    np.testing.assert_allclose(np.stack(answers["logits"]), expected, rtol=1e-4, atol=1e-5)
    assert list(answers["label"]) == [NAMES[number] for number in expected.argmax(1)]
    np.testing.assert_allclose(answers["probability"], torch.from_numpy(expected).softmax(1).amax(1), rtol=1e-4)
    assert served.metadata.metadata == {
        "class_names": list(NAMES),
        "image_shape": [1, 32, 32],
        "image_range": [0, 1],
        "pictures": "resize_and_crop",
    }


def test_answers__do_not_depend_on_how_many_images_are_asked_at_once(served: Any) -> None:
    many = np.repeat(IMAGES, 60, axis=0)
    np.testing.assert_allclose(np.stack(served.predict(many)["logits"]), logits_of(STUDENT, many), rtol=1e-4, atol=1e-5)


def test_pytorch_flavour__still_returns_logits_without_unpickling(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with torch.no_grad():
        found = mlflow.pytorch.load_model(address)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(found, logits_of(STUDENT, IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (picture(32, 32, "L"), "PNG"),
        (picture(50, 33), "PNG"),
        (picture(40, 70, "RGBA"), "PNG"),
        (picture(28, 28, "P"), "PNG"),
        (picture(90, 64, "L"), "JPEG"),
        (picture(64, 64, "CMYK"), "JPEG"),
    ],
    ids=lambda value: f"{value.mode} {value.size}" if isinstance(value, Image.Image) else value,
)
def test_pictures__are_fitted_like_those_of_the_evaluation(served: Any, given: Image.Image, form: str) -> None:
    text = in_base64(given, form)
    stored = Image.open(io.BytesIO(base64.b64decode(text)))
    pixels = np.array(stored.convert("L" if given.mode == "L" else "RGB")).reshape(given.height, given.width, -1)
    fitted = resize_and_crop(with_channels(torch.from_numpy(pixels).permute(2, 0, 1)[None], 1), 32, 32)
    expected = logits_of(STUDENT, fitted.numpy().astype(np.float32) / 255)
    for asked in ([text], np.array([text]), pd.DataFrame({"picture": [text]}), ["\n".join([text[:60], text[60:]])]):
        np.testing.assert_allclose(np.stack(served.predict(asked)["logits"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (IMAGES[0], f"Images must have the shape {SHAPE}, got (1, 32, 32)."),
        (IMAGES[:, :, :28], f"Images must have the shape {SHAPE}, got (5, 1, 28, 32)."),
        (IMAGES[:0], f"Images must have the shape {SHAPE}, got (0, 1, 32, 32)."),
        ([], f"Images must have the shape {SHAPE}, got (0,)."),
        ([[0.1, 0.2], [0.3]], f"Images must have the shape {SHAPE}, got rows of different lengths."),
        (
            255 * np.ones_like(IMAGES),
            "Images must have values in [0, 1], got 255 to 255: divide pixels of 8 bits by 255",
        ),
        (IMAGES - 0.5, "Images must have values in [0, 1], got -0.49"),
        (np.full_like(IMAGES, np.nan), "Images must have values in [0, 1], got nan to nan"),
        ("cat.png", f"Images must be numbers in [0, 1] of shape {SHAPE}, or a list of PNG or JPEG files in base64"),
        ({"images": ["a"]}, "Images must be numbers in [0, 1]"),
        ([{"b64": "a"}], "Images must be numbers in [0, 1]"),
        (IMAGES.astype(np.complex64), "Images must be numbers in [0, 1]"),
        (pd.DataFrame({"a": ["b"], "c": ["d"]}), "Images must be numbers in [0, 1]"),
        (["cat.png"], "Picture 0 is not in base64."),
        (["Kätzchen"], "Picture 0 is not in base64."),
        ([""], "Picture 0 is not a whole PNG or JPEG file."),
        (
            [in_base64(picture(9, 9), "PNG"), in_base64(picture(9, 9), "GIF")],
            "Picture 1 is not a whole PNG or JPEG file.",
        ),
        ([in_base64(picture(9, 9), "TIFF")], "Picture 0 is not a whole PNG or JPEG file."),
        ([in_base64(picture(99, 99), "PNG")[:4000]], "Picture 0 is not a whole PNG or JPEG file."),
        ([in_base64(picture(99, 99), "JPEG")[:2000]], "Picture 0 is not a whole PNG or JPEG file."),
        (
            [in_base64(Image.new("I;16", (9, 9)), "PNG")],
            "Picture 0 has more than 8 bits per channel: convert it to 8 bits.",
        ),
    ],
)
def test_other_input__is_refused_in_one_sentence(served: Any, given: Any, sentence: str) -> None:
    with pytest.raises(MlflowException) as caught:
        served.predict(given)
    assert caught.value.message.startswith(sentence)
    assert caught.value.message.endswith(".")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize("size", [(2000, 1), (9000, 9000)])
def test_picture__that_would_fill_the_memory_is_refused(served: Any, size: tuple[int, int]) -> None:
    with pytest.raises(
        MlflowException, match=f"^Picture 0 has {size[0]} x {size[1]} pixels: send at most 67,108,864, "
    ):
        served.predict([in_base64(Image.new("1", size), "PNG")])


def test_server__answers_arrays_and_pictures_and_does_not_repeat_what_it_refuses(server: TestClient) -> None:
    for asked in ({"inputs": IMAGES.tolist()}, {"instances": IMAGES.tolist()}):
        first, *_ = server.post("/invocations", json=asked).json()["predictions"]
        np.testing.assert_allclose(first["logits"], logits_of(STUDENT, IMAGES)[0], rtol=1e-4, atol=1e-5)
    text = in_base64(picture(20, 20), "PNG")
    table = {"dataframe_split": {"columns": ["picture"], "data": [[text]]}}
    found = [server.post("/invocations", json=asked).json() for asked in ({"inputs": [text]}, table)]
    assert found[0] == found[1]
    assert found[0]["predictions"][0]["label"] in NAMES
    refused = server.post("/invocations", json={"inputs": IMAGES[0].tolist()})
    assert refused.status_code == 400
    assert json.loads(refused.text) == {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": f"Images must have the shape {SHAPE}, got (1, 32, 32).",
    }


def test_code_of_the_model__needs_its_own_requirements_alone(address: str) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(address))
    required = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert required == {"mlflow", "numpy", "pandas", "pillow", "torch"}
    modules = (required - {"pillow"}) | {"PIL"} | set(sys.stdlib_module_names)
    code = [path for path in folder.rglob("*.py")]
    assert {path.name for path in code} == {"served_model.py", "fitting.py"}
    for node in (node for path in code for node in ast.walk(ast.parse(path.read_text()))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= modules
