"""A student as a model of MLflow, in a form that needs no unpickling and no dfkd.

The folder of a logged model has two flavours. `pytorch` is the program of torch.export that returns logits. `pyfunc`
is a copy of `served_model`, which runs the same program and answers with label, probability and logits.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import mlflow.pyfunc
import mlflow.pytorch
import torch
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.pyfunc.loaders import code_model
from mlflow.types.schema import Array, ColSpec, DataType, Schema

from dfkd_core.common.digests import write_json
from dfkd_core.common.pixels import grey_images
from dfkd_core.data import fitting
from dfkd_core.models.classifier import Classifier, ModelCard

__all__ = ["Pictures", "log_student"]

Pictures = Literal["resize", "resize_and_crop"]
"""Function of `dfkd_core.data.fitting` that fits a picture to the student's input."""

_PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "torch")
_CODE = "served_model.py"
_PROGRAM, _CARD, _FITTING = "data/model.pt2", "data/student.json", "data/fitting.py"
_ANSWER = Schema(
    [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.double), "logits"),
    ]
)


def log_student(student: Classifier, *, pictures: Pictures = "resize_and_crop") -> str:
    """Log a student as a model of the active run and return the model's address.

    Args:
        student: In eval mode, on the CPU.
        pictures: How the model fits pictures that it gets in base64.
    """
    # With at least two images the exported program takes batches of any size.
    example = grey_images(2, student.card.image_shape)
    with torch.no_grad():
        signature = infer_signature(example.numpy(), student(example).numpy())
    card = _described(student.card, pictures)
    with warnings.catch_warnings():
        # torch.export warns of weights that are not on the CPU; these are on it.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        made = Model.log(
            artifact_path=None,
            name="student",
            flavor=SimpleNamespace(__name__=mlflow.pytorch.__name__, save_model=partial(_save, card=card)),
            metadata=card,
            pytorch_model=student,
            serialization_format="pt2",
            signature=signature,
            input_example=example.numpy(),
            pip_requirements=[f"{package}=={_public_version(package)}" for package in _PACKAGES],
            # It would load the model once more; a publication compares the registered program with the student.
            validate_serving_input=False,
        )
    return str(made.model_uri)


def _described(card: ModelCard, pictures: Pictures) -> dict[str, Any]:
    """Return what users of the model need to know of its input and output."""
    return {
        "class_names": list(card.class_labels),
        "image_shape": list(card.image_shape),
        "image_range": [0, 1],
        "pictures": pictures,
    }


def _public_version(package: str) -> str:
    """Return an installed version as package indices have it: without the label of a build, as in 2.13.0+cpu."""
    return version(package).partition("+")[0]


def _save(
    path: str, mlflow_model: Model, *, card: Mapping[str, Any], validate_serving_input: bool, **options: Any
) -> None:
    """Save a model as MLflow does, but with our own answers, for the CPU.

    MLflow's pyfunc of a PyTorch model loads it onto a GPU that it finds, and refuses an exported program that was made
    on another device.
    """
    mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **options)
    folder = Path(path)
    write_json(folder / _CARD, card)
    shutil.copyfile(fitting.__file__, folder / _FITTING)
    shutil.copyfile(Path(__file__).with_name(_CODE), folder / _CODE)
    files = {"program": _PROGRAM, "card": _CARD, "fitting": _FITTING}
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=code_model.__name__,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_code_path=_CODE,
        artifacts={name: {"path": place, "uri": place} for name, place in files.items()},
    )
    # Without a schema of the input, as it is an array or a list of pictures: MLflow would refuse one of them.
    mlflow_model.signature = ModelSignature(outputs=_ANSWER)
    mlflow_model.save(str(folder / MLMODEL_FILE_NAME))
