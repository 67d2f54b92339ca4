"""The figures of registered students for the rules, on the images that were evaluated last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dfkd_core.common.compute import Compute, settled
from dfkd_core.common.rows import Rows
from dfkd_core.data.datasets import DataConfig
from dfkd_core.errors import DataError, DfkdError
from dfkd_core.evaluation.comparison import EvaluationConfig
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.evaluation.metrics import expected_calibration_error
from dfkd_core.evaluation.predictions import Predictions, predict_images, read_predictions
from dfkd_core.evaluation.proxy import held_out_images
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.storage import read_card
from dfkd_flows.registry.gate import Figures
from dfkd_flows.settings.params import Params
from dfkd_flows.stages.caching import compute_for
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.mlflow_store.aliases import IMAGES_TAG, Version
from dfkd_tasks.mlflow_store.registered import load_registered, logged_metrics, logged_predictions

__all__ = ["Evaluated", "champion_figures", "evaluated_images", "figures_again", "known_figures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The images that the project's student was evaluated on, for the evaluation of others."""

    predictions: Predictions
    card: ModelCard
    """The teacher's card: classes of the labels, and shape of the images."""
    data: DataConfig
    config: EvaluationConfig
    compute: Compute
    student: str
    """Name of the student that was evaluated."""


def evaluated_images(params: Params) -> Evaluated:
    """Return what is needed to evaluate further students on the images of a student's last evaluation.

    Args:
        params: Parameters of the student, see `Params.for_student`.

    Raises:
        DfkdError: Nothing was evaluated yet, or a file is damaged.
    """
    return Evaluated(
        predictions=read_predictions(StudentFiles(params.student_name).predictions),
        card=read_card(TeacherFiles(params.teacher_name).network),
        data=params.data,
        config=params.evaluation,
        compute=compute_for(params.execution),
        student=params.student_name,
    )


def known_figures(metrics: Mapping[str, float], predictions: Predictions | None, *, version: str = "") -> Figures:
    """Return the figures of an evaluation by the names of metrics.json and of the run's metrics.

    Args:
        metrics: Figures by dotted name, for example `student.accuracy` and `latency.student.batch_1_ms`.
        predictions: Its predicted classes, None if they are not known.
        version: Version in the registry.
    """
    is_proxy = "proxy.agreement" in metrics
    agreement = metrics.get("proxy.agreement" if is_proxy else "student.agreement")
    num_images = metrics.get("num_images")
    return Figures(
        score=agreement if is_proxy else metrics.get("student.accuracy"),
        is_proxy=is_proxy,
        agreement=agreement,
        teacher_accuracy=metrics.get("teacher.accuracy"),
        ece=metrics.get("student.ece"),
        latency_ms=metrics.get("latency.student.batch_1_ms"),
        size_bytes=metrics.get("student.size_bytes"),
        num_images=None if num_images is None else int(num_images),
        hits=None if predictions is None else _hits(predictions.student, predictions.truth),
        version=version,
    )


def champion_figures(champion: Version, evaluated: Evaluated) -> Figures:
    """Return the champion's figures on the images of the last evaluation.

    Those of its own evaluation count only if they are of the same images. Otherwise it is read from the registry and
    evaluated again. Without its files, its accuracy on the same images counts without the answers to single ones.

    Returns:
        The figures; their score is None, with the reason in the note, if they are not known.
    """
    logged, now = logged_predictions(champion), evaluated.predictions
    if logged and logged.images_sha256 == now.images_sha256:
        return _scored(champion, _hits(logged.student, now.truth), is_proxy=now.labels is None)
    try:
        return figures_again(champion, evaluated)
    except DataError:
        # The images are at fault, not the champion.
        raise
    except DfkdError as error:
        fault = str(error).split(". See all versions")[0]
    unknown = Figures(score=None, version=champion.number, note=_why_unknown(champion, fault))
    if champion.tags.get(IMAGES_TAG) != now.images_sha256:
        return unknown
    metrics = logged_metrics(champion)
    if metrics is None:
        return unknown
    return dataclasses.replace(known_figures(metrics, None, version=champion.number), num_images=len(now.truth))


def _why_unknown(champion: Version, fault: str) -> str:
    if not champion.run_id:
        return f"it has no run; {fault}"
    if logged_metrics(champion) is None:
        return f"its run {champion.run_id[:8]} is gone; {fault}"
    return f"it was evaluated on other images; {fault}"


def figures_again(version: Version, evaluated: Evaluated) -> Figures:
    """Read a version from the registry and evaluate it on the images of the last evaluation.

    Raises:
        DfkdError: It cannot be loaded, or has another number of classes.
        DataError: The images cannot be read, or are no longer those of the last evaluation.
    """
    student, now = load_registered(version), evaluated.predictions
    if student.card.num_classes != evaluated.card.num_classes:
        raise DfkdError(f"it has {student.card.num_classes} classes, the teacher has {evaluated.card.num_classes}")
    images, labels = _images(evaluated, student.card.image_shape)
    compute = evaluated.compute
    logits, digest = predict_images(
        student,
        images,
        batch_size=evaluated.config.batch_size,
        device=settled(compute).device,
        memory=compute.memory,
    )
    is_same = digest.of(images, labels) == now.images_sha256
    if not is_same and student.card.image_shape == evaluated.card.image_shape:
        raise _changed(evaluated)
    classes = logits.argmax(1).tolist()
    found = _scored(version, _hits(classes, now.truth), is_proxy=now.labels is None, note="evaluated again on them")
    agreement = sum(_hits(classes, now.teacher)) / len(classes)
    if labels is None:
        return dataclasses.replace(found, agreement=agreement)
    return dataclasses.replace(
        found,
        agreement=agreement,
        teacher_accuracy=sum(_hits(now.teacher, now.truth)) / len(classes),
        ece=expected_calibration_error(logits, labels, num_bins=evaluated.config.num_bins),
    )


def _images(evaluated: Evaluated, shape: tuple[int, int, int]) -> tuple[Rows, torch.Tensor | None]:
    """Return the images in the shape that a student takes, and their labels.

    Raises:
        DataError: They cannot be read, or the labels are no longer those of the last evaluation.
    """
    now, channels = evaluated.predictions, shape[0]
    card = dataclasses.replace(
        evaluated.card, in_channels=channels, image_size=shape[1], mean=(0.0,) * channels, std=(1.0,) * channels
    )
    data = load_evaluation_data(evaluated.data, card)
    found = None if data is None else tuple(data.labels.tolist())
    if found != now.labels:
        raise _changed(evaluated)
    return (data.images, data.labels) if data else (held_out_images(shape, len(now.teacher)), None)


def _changed(evaluated: Evaluated) -> DataError:
    return DataError(
        f"The images of {evaluated.data.dataset!r} are not those of the last evaluation. Evaluate again with: "
        f"dfkd stage evaluate {evaluated.student}, then: dfkd run {evaluated.student}"
    )


def _scored(version: Version, hits: tuple[bool, ...], *, is_proxy: bool, note: str = "") -> Figures:
    return Figures(
        score=sum(hits) / len(hits),
        is_proxy=is_proxy,
        num_images=len(hits),
        hits=hits,
        version=version.number,
        note=note,
    )


def _hits(predicted: Sequence[int], truth: Sequence[int]) -> tuple[bool, ...]:
    return tuple(one == other for one, other in zip(predicted, truth, strict=True))
