"""A student as a model of MLflow, in a form that needs no unpickling."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import mlflow.pytorch
import torch
from mlflow.models import Model, infer_signature
from mlflow.models.model import MLMODEL_FILE_NAME, MODEL_CONFIG

from dfkd_core.common.pixels import grey_images
from dfkd_core.models.classifier import Classifier

__all__ = ["log_student"]


def log_student(student: Classifier) -> str:
    """Log a student as a model of the active run and return the model's address."""
    # With at least two images the exported program takes batches of any size.
    example = grey_images(2, student.card.image_shape)
    with torch.no_grad():
        signature = infer_signature(example.numpy(), student(example).numpy())
    with warnings.catch_warnings():
        # torch.export warns of weights that are not on the CPU; these are on it.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        made = Model.log(
            artifact_path=None,
            name="student",
            flavor=_PYTORCH_ON_CPU,
            pytorch_model=student,
            serialization_format="pt2",
            signature=signature,
            input_example=example.numpy(),
            pip_requirements=[f"{package}=={_public_version(package)}" for package in ("mlflow", "numpy", "torch")],
        )
    return str(made.model_uri)


def _public_version(package: str) -> str:
    """Return an installed version as package indices have it: without the label of a build, as in 2.13.0+cpu."""
    return version(package).partition("+")[0]


def _save_for_cpu(path: str, mlflow_model: Model, **options: Any) -> None:
    """Save a model as MLflow does, but for the CPU, even if there is a GPU.

    MLflow loads a model onto a GPU that it finds, and refuses an exported program that was made on another device.
    """
    mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **options)
    mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME][MODEL_CONFIG] = {"device": "cpu"}
    mlflow_model.save(str(Path(path, MLMODEL_FILE_NAME)))


_PYTORCH_ON_CPU = SimpleNamespace(__name__=mlflow.pytorch.__name__, save_model=_save_for_cpu)
