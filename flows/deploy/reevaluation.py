"""The champion of each student on other images: figures to MLflow and to Prefect; nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from dfkd_core.common.compute import settled
from dfkd_core.data.datasets import NO_DATA
from dfkd_core.errors import ConfigError, DfkdError
from dfkd_core.evaluation.intervals import Z_95, wilson_interval
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.evaluation.metrics import label_scores
from dfkd_core.evaluation.predictions import predict_images
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.storage import CONFIG_FILE, read_card
from dfkd_flows.run.described import evaluated_on
from dfkd_flows.run.publishing import registered_name
from dfkd_flows.session.display import say
from dfkd_flows.session.environment import enter_project, prepare_environment
from dfkd_flows.settings.overrides import with_values
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.shown.log import show_run
from dfkd_flows.shown.names import data_label, reevaluation_name
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for
from dfkd_tasks.caching.workspace import TeacherFiles
from dfkd_tasks.mlflow_store.aliases import CHAMPION, Version, version_of
from dfkd_tasks.mlflow_store.inputs import Images
from dfkd_tasks.mlflow_store.publishing import open_store, use_filled_store
from dfkd_tasks.mlflow_store.reevaluation import log_reevaluation
from dfkd_tasks.mlflow_store.registered import load_registered

__all__ = ["reevaluate"]


@flow(name="reevaluate", **FLOW_OPTIONS)
def reevaluate(students: list[str] | None = None, dataset: str | None = None) -> dict[str, dict[str, float]]:
    """Evaluate the champion of each student, as it is loaded from the registry, and log its figures.

    Args:
        students: Names of the students; all if there are none.
        dataset: Labelled images as in `data.dataset`; None takes those of params.yaml.

    Returns:
        The figures of each champion by the student's name: accuracy with its 95 % interval, calibration error, and the
        number of images.

    Raises:
        DfkdError: The parameters have a fault, a champion is missing or cannot be loaded, or images cannot be read.
    """
    prepare_environment(enter_project())
    params = load_params()
    chosen = params.only(students) if students else params
    show_run(reevaluation_name(chosen, dataset), chosen)
    data = {name: _with_data(params.for_student(name), dataset) for name in chosen.students}
    use_filled_store()
    champions = {name: _champion(own) for name, own in data.items()}
    evaluated = {name: _evaluate(data[name], version) for name, version in champions.items()}
    found = {name: figures for name, (figures, _) in evaluated.items()}
    for name, (figures, images) in evaluated.items():
        _report(data[name], champions[name], figures, images)
    create_table_artifact(key="reevaluation", table=[_row(name, found[name], champions[name]) for name in found])
    return found


def _with_data(params: Params, dataset: str | None) -> Params:
    if dataset is not None:
        data = with_values(params, {"data.dataset": dataset}, source="dataset").data
        params = dataclasses.replace(params, data=dataclasses.replace(data, class_order=()))
    if params.data.dataset == NO_DATA:
        raise ConfigError("A champion is evaluated again on labelled images. Name some, for example: folder:PATH")
    return params


def _champion(params: Params) -> Version:
    model = registered_name(params)
    champion = version_of(model, CHAMPION)
    if champion is None:
        raise DfkdError(f"{model} has no champion. Make one with: dfkd run {params.student_name}")
    return champion


def _evaluate(params: Params, champion: Version) -> tuple[dict[str, float], Images]:
    student, compute = load_registered(champion), compute_for(params.execution)
    data = load_evaluation_data(params.data, _card(params, student.card))
    assert data
    config = params.evaluation
    logits, digest = predict_images(
        student, data.images, batch_size=config.batch_size, device=settled(compute).device, memory=compute.memory
    )
    scores = label_scores(logits, data.labels, config.num_bins)
    low, high = wilson_interval(scores.accuracy, len(data), Z_95)
    figures = {
        "accuracy": scores.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "ece": scores.ece,
        "num_images": float(len(data)),
    }
    sha256 = digest.of(data.images, data.labels)
    shape = student.card.image_shape
    return figures, evaluated_on(params.data.dataset, sha256, num_images=len(data), image_shape=shape)


def _card(params: Params, student: ModelCard) -> ModelCard:
    """Return the card of the student with the names of the teacher's classes, if these are known here."""
    stored = TeacherFiles(params.teacher_name).network
    names = read_card(stored).class_names if (stored / CONFIG_FILE).is_file() else ()
    return dataclasses.replace(student, class_names=names if len(names or ()) == student.num_classes else ())


def _report(params: Params, champion: Version, figures: Mapping[str, float], images: Images) -> None:
    tags = {"accuracy": f"{figures['accuracy']:.2%}", "data": data_label(params.data.dataset)}
    log_reevaluation(open_store(params.registry.experiment), champion, images, figures, tags)
    text = (
        f"{champion.model} version {champion.number} on {params.data.dataset}: accuracy {figures['accuracy']:.4f} "
        f"({figures['accuracy_low']:.4f} to {figures['accuracy_high']:.4f}), {figures['num_images']:.0f} images"
    )
    say(text)
    get_run_logger().info(text)


def _row(name: str, figures: Mapping[str, float], champion: Version) -> dict[str, Any]:
    return {"student": name, "model": champion.model, "version": champion.number, **figures}
