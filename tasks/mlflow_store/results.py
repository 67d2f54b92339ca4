"""What MLflow holds of a finished result: figures, inputs, files, the student, a table of disagreements, digests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME

from dfkd_core.evaluation.disagreements import worst_places
from dfkd_core.evaluation.predictions import Predictions, read_predictions
from dfkd_core.models.classifier import Classifier
from dfkd_tasks.caching.stored_models import load_allowed_model
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.mlflow_store.figures import epoch_metrics, log_figures, make_metrics
from dfkd_tasks.mlflow_store.inputs import Images, data_input
from dfkd_tasks.mlflow_store.student import Pictures, log_student

__all__ = ["DISAGREEMENTS_FILE", "LINEAGE_FILE", "Result", "log_content", "source_tags"]

LINEAGE_FILE = "lineage.json"
"""File of a run with the digests and the commit that its result depends on."""
DISAGREEMENTS_FILE = "disagreements.json"
"""Table of a run with the images that teacher and student answer differently."""

_COMMIT = re.compile("[0-9a-f]{40}")
_MOST_ROWS = 1000
_EVALUATED = ("teacher", "student", "proxy", "num_images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished result of one student, and the words in which MLflow shows it."""

    teacher: TeacherFiles
    student: StudentFiles
    name: str
    """Name of the run."""
    note: str
    """Description of the run and of the version, in Markdown."""
    params: Mapping[str, Any]
    """Settings by dotted name."""
    figures: Mapping[str, float]
    """By dotted name."""
    tags: Mapping[str, str]
    """Tags of the run and of the version, with `RESULTS_TAG`."""
    lineage: Mapping[str, str]
    """Names, digests and the commit that the result depends on."""
    transfer_set: Images
    evaluated: Images
    pictures: Pictures
    """How the served student fits pictures to its input."""


def source_tags(result: Result) -> dict[str, str]:
    """Return the tags by which MLflow's page shows the program and the commit of a run."""
    commit = _COMMIT.match(result.lineage["git_commit"])
    return {MLFLOW_SOURCE_NAME: "dfkd", **({MLFLOW_GIT_COMMIT: commit[0]} if commit else {})}


def log_content(run_id: str, result: Result) -> str:
    """Log a result into the active run and return the address of its model.

    Figures are on the run and on the model, those of the evaluation with the evaluated images.
    """
    client, student = mlflow.MlflowClient(), load_allowed_model(result.student.network)
    # The model takes over the run's parameters; figures are logged on both afterwards.
    log_figures(run_id, [], result.params)
    client.log_inputs(run_id, [data_input(images) for images in (result.transfer_set, result.evaluated)])
    model_uri = log_student(student, pictures=result.pictures)
    model_id = model_uri.removeprefix("models:/")
    of_images = {name: value for name, value in result.figures.items() if name.partition(".")[0] in _EVALUATED}
    others = {name: value for name, value in result.figures.items() if name not in of_images}
    metrics = [
        *epoch_metrics(result.teacher, result.student, model_id),
        *make_metrics(of_images, model_id=model_id, images=result.evaluated),
        *make_metrics(others, model_id=model_id),
    ]
    log_figures(run_id, metrics, {})
    client.log_dict(run_id, dict(result.lineage), LINEAGE_FILE)
    _log_disagreements(run_id, read_predictions(result.student.predictions), student)
    _log_files(result.teacher, result.student)
    return model_uri


def _log_disagreements(run_id: str, predictions: Predictions, student: Classifier) -> None:
    names, places = student.card.class_labels, worst_places(predictions)[:_MOST_ROWS].tolist()
    answers = {"teacher": predictions.teacher, "student": predictions.student, "label": predictions.labels}
    sure = {"teacher": predictions.teacher_confidence, "student": predictions.student_confidence}
    columns: dict[str, list[Any]] = {"image": places}
    columns |= {name: [names[found[place]] for place in places] for name, found in answers.items() if found}
    columns |= {f"{name}_confidence": [found[place] for place in places] for name, found in sure.items() if found}
    mlflow.MlflowClient().log_table(run_id, columns, DISAGREEMENTS_FILE)


def _log_files(teacher: TeacherFiles, student: StudentFiles) -> None:
    mlflow.log_artifact(str(teacher.transfer_set / "manifest.json"), "transfer_set")
    mlflow.log_artifacts(str(teacher.reports), "reports/teacher")
    mlflow.log_artifacts(str(student.reports), "reports/student")
    mlflow.log_artifacts(str(student.network), "student")
