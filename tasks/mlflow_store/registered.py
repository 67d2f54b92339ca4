"""Registered students as their users load them: read from the registry, without unpickling, and checked on images."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor

from dfkd_core.common.pixels import dequantise, grey_images
from dfkd_core.errors import DfkdError, first_line
from dfkd_core.evaluation.predictions import Predictions, read_predictions
from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_core.models.programs import load_program
from dfkd_tasks.caching.workspace import PREDICTIONS_FILE
from dfkd_tasks.mlflow_store.aliases import MISSING, Version
from dfkd_tasks.mlflow_store.publishing import STUDENT_TAG

__all__ = ["check_answers", "load_registered", "logged_metrics", "logged_predictions"]

# MLflow's file of a model that is a program of torch.export.
_PROGRAM = "data/model.pt2"
_TOLERANCE = 1e-3


def load_registered(version: Version) -> Classifier:
    """Read a registered student from MLflow; it takes images in [0, 1].

    Raises:
        DfkdError: Its files are missing or damaged, or it is no program of torch.export for square images.
    """
    name = f"version {version.number} of {version.model}"
    try:
        with TemporaryDirectory() as folder:
            place = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{version.model}/{version.number}", dst_path=folder
            )
            program = load_program(Path(place, _PROGRAM), "pt2")
        return _classifier(program.network, program.image_shape or ())
    except Exception as error:  # MLflow, its stores and a foreign program have many classes
        raise DfkdError(
            f"{name[0].upper()}{name[1:]} cannot be loaded from the registry: {first_line(error)}. "
            f"See all versions with: dfkd history{_option(version)}"
        ) from error


def _option(version: Version) -> str:
    """Return the option for the student of a version, which a project with several needs."""
    student = version.tags.get(STUDENT_TAG)
    return f" --student {student}" if student else ""


def _classifier(network: torch.nn.Module, image_shape: tuple[int | None, ...]) -> Classifier:
    if len(image_shape) != 3 or None in image_shape or image_shape[1] != image_shape[2]:
        raise DfkdError(f"it takes images of shape {image_shape}, not square ones of one size")
    channels, size, _ = (int(length or 0) for length in image_shape)
    with torch.inference_mode():
        answer = network(grey_images(2, (channels, size, size)))
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        raise DfkdError("it does not return logits")
    card = ModelCard(
        network="pt2",
        in_channels=channels,
        image_size=size,
        num_classes=answer.shape[1],
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        layer="",
        channels_last=False,
    )
    return Classifier(network, card)


def check_answers(version: Version, student: Classifier, images: Tensor) -> None:
    """Check that a version, loaded from the registry, answers like the student that it should be.

    Args:
        version: The version.
        student: The project's student.
        images: uint8 [n, c, h, w].

    Raises:
        DfkdError: It cannot be loaded, or its logits differ.
    """
    registered = load_registered(version)
    with torch.inference_mode():
        expected, found = (model.cpu().eval()(dequantise(images)) for model in (student, registered))
    if found.shape != expected.shape or not (found - expected).abs().max() <= _TOLERANCE * expected.abs().max():
        raise DfkdError(
            f"Version {version.number} of {version.model} does not answer like the student that was registered, so no "
            "alias was moved. Delete this version in MLflow, then register the student again with: dfkd run"
        )


def logged_metrics(version: Version) -> dict[str, float] | None:
    """Return the figures of a version's run; None if it has none or the run is gone."""
    if not version.run_id:
        return None
    try:
        return dict(mlflow.MlflowClient().get_run(version.run_id).data.metrics)
    except MlflowException as error:
        if error.error_code in MISSING:
            return None
        raise


def logged_predictions(version: Version) -> Predictions | None:
    """Return the predicted classes that were logged with a version's run; None if they are missing or damaged."""
    if not version.run_id:
        return None
    try:
        with TemporaryDirectory() as folder:
            place = mlflow.MlflowClient().download_artifacts(
                version.run_id, f"reports/student/{PREDICTIONS_FILE}", folder
            )
            return read_predictions(Path(place))
    except (MlflowException, DfkdError, OSError):
        return None
