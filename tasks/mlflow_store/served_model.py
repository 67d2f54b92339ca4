"""The code of a logged student: MLflow runs a copy of this file to load and serve the model, without dfkd.

Nothing here imports dfkd, and nothing is unpickled: the network is a program of torch.export beside the copy.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image
from torch import Tensor

__all__ = ["Refusal", "ServedStudent"]

_FORMATS = ("JPEG", "PNG")
_MOST_PIXELS = 2**26
# A line of pixels would be enlarged to gigabytes, as its shorter side is fitted first.
_LARGEST_ASPECT = 64
_IMAGES_AT_ONCE = 256
_ROUNDING = 1e-3


class Refusal(MlflowException):
    """Input that the student does not take, in one sentence."""

    def __init__(self, sentence: str) -> None:
        """Keep the sentence: MLflow's server puts the whole input in front of the message."""
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)
        self._sentence = sentence

    def serialize_as_json(self) -> str:
        """Return the answer of MLflow's server."""
        return json.dumps({"error_code": self.error_code, "message": self._sentence})


class ServedStudent(PythonModel):
    """A student that answers with label, probability and logits."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the files beside the copy of this one."""
        card = json.loads(Path(context.artifacts["card"]).read_text(encoding="utf-8"))
        self._class_names: list[str] = card["class_names"]
        self._shape: tuple[int, ...] = tuple(card["image_shape"])
        self._fitting = _load_module(context.artifacts["fitting"])
        self._fit = getattr(self._fitting, card["pictures"])
        self._program = torch.export.load(context.artifacts["program"]).module()

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a row for each image: `label`, its `probability`, and the `logits` of all classes.

        Args:
            context: Not used; MLflow passes it.
            model_input: Images [n, c, h, w] in [0, 1], or n pictures: strings with a PNG or JPEG file in base64, in a
                list or in the only column of a table.
            params: Not used; MLflow passes it.

        Raises:
            Refusal: The input is neither, or has another shape or other values.
        """
        images = self._images(model_input)
        with torch.no_grad():
            logits = torch.cat([self._program(part) for part in torch.split(images, _IMAGES_AT_ONCE)])
        probability, classes = logits.softmax(1).max(1)
        return pd.DataFrame(
            {
                "label": [self._class_names[number] for number in classes.tolist()],
                "probability": probability.tolist(),
                "logits": logits.tolist(),
            }
        )

    def _images(self, given: Any) -> Tensor:
        """Return the input as float32 [n, c, h, w]."""
        if isinstance(given, pd.DataFrame) and given.shape[1] == 1:
            given = given.iloc[:, 0]
        try:
            values = np.asarray(given)
        except ValueError:
            raise Refusal(f"Images must have the shape {self._wanted()}, got rows of different lengths.") from None
        if values.ndim == 1 and len(values) and all(isinstance(value, str) for value in values.tolist()):
            return torch.cat([self._picture(text, number) for number, text in enumerate(values.tolist())])
        return self._array(values)

    def _wanted(self) -> str:
        return f"(n, {', '.join(map(str, self._shape))}) with n of at least 1"

    def _array(self, values: np.ndarray) -> Tensor:
        if values.dtype.kind not in "buif":
            raise Refusal(
                f"Images must be numbers in [0, 1] of shape {self._wanted()}, or a list of PNG or JPEG files in "
                f"base64, got {values.dtype} of shape {values.shape}."
            )
        if values.shape[1:] != self._shape or not len(values):
            raise Refusal(f"Images must have the shape {self._wanted()}, got {values.shape}.")
        low, high = float(values.min()), float(values.max())
        # False for NaN too.
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
            raise Refusal(
                f"Images must have values in [0, 1], got {low:g} to {high:g}: divide pixels of 8 bits by 255, and do "
                "not normalise."
            )
        return torch.from_numpy(values.astype(np.float32))

    def _picture(self, text: str, number: int) -> Tensor:
        """Return a picture in base64 as float32 [1, c, h, w], fitted as the pictures of the evaluation."""
        channels, height, width = self._shape
        if channels not in (1, 3):
            raise Refusal(f"This student takes images of {channels} channels: send arrays of shape {self._wanted()}.")
        pixels = _decoded(text, number)
        fitted: Tensor = self._fit(self._fitting.with_channels(pixels, channels), height, width)
        return fitted.float() / 255


def _decoded(text: str, number: int) -> Tensor:
    """Return a picture in base64 as uint8 [1, 1 or 3, h, w]."""
    try:
        # Programs break the lines of base64.
        content = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise Refusal(f"Picture {number} is not in base64.") from None
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            return _pixels(picture, number)
    except Refusal:
        raise
    except Exception:  # Pillow's readers raise many kinds of errors for a damaged file
        raise Refusal(f"Picture {number} is not a whole PNG or JPEG file.") from None


def _pixels(picture: Image.Image, number: int) -> Tensor:
    """Return a picture as uint8 [1, 1 or 3, h, w]; opacity is dropped."""
    width, height = picture.size
    if width * height > _MOST_PIXELS or max(width, height) > _LARGEST_ASPECT * min(width, height):
        raise Refusal(
            f"Picture {number} has {width} x {height} pixels: send at most {_MOST_PIXELS:,}, and no side longer than "
            f"{_LARGEST_ASPECT} times the other."
        )
    if picture.mode.startswith(("I", "F")):
        raise Refusal(f"Picture {number} has more than 8 bits per channel: convert it to 8 bits.")
    if picture.mode in ("1", "L", "LA", "La"):
        return torch.from_numpy(np.array(picture.convert("L")))[None, None]
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]


def _load_module(path: str) -> ModuleType:
    """Run a Python file of the model's folder as a module of its own."""
    spec = importlib.util.spec_from_file_location("_dfkd_served_fitting", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ServedStudent())
