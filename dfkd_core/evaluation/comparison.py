"""The quality of a student, alone and compared with its teacher: accuracy, calibration, agreement, size and latency.

n images, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, cast

import torch
from annotated_types import Ge, Le
from safetensors.torch import save
from torch import Tensor, nn

from dfkd_core.common.pixels import dequantise, move_batch
from dfkd_core.common.rows import Rows
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import DataError
from dfkd_core.evaluation.class_order import check_class_order
from dfkd_core.evaluation.labelled_images import EvaluationData
from dfkd_core.evaluation.metrics import (
    LabelScores,
    confidence_and_class,
    confusion_matrix,
    label_scores,
    mean_kl,
)
from dfkd_core.evaluation.predictions import ImagesDigest, Predictions
from dfkd_core.models.access import Inspectable, Labeller, has_access
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.passes import PassSizes, joined
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import PositiveInt, config_section

__all__ = [
    "EvaluationConfig",
    "EvaluationReport",
    "ModelReport",
    "evaluate",
]


@config_section
class EvaluationConfig:
    """Settings of the evaluation."""

    batch_size: PositiveInt = 500
    """Images per forward pass; does not change the figures beyond rounding."""
    num_bins: Annotated[int, Ge(1), Le(10_000)] = 15
    """Bins of equal width of the expected calibration error."""
    num_latency_runs: PositiveInt = 50
    """Timed forward passes per batch size; the median is reported."""
    num_held_out_images: PositiveInt = 20_000
    """Synthetic images that replace real ones if `data.dataset` is `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """Figures of one model."""

    num_parameters: int | None
    """Trainable parameters of the network; None for a teacher that does not expose it."""
    size_bytes: int | None
    """Size of its safetensors file; None likewise."""
    scores: LabelScores | None
    """None without labels."""

    def to_metrics(self) -> dict[str, float]:
        """Return the single figures by name; shares are fractions."""
        metrics: dict[str, float] = {}
        if self.num_parameters is not None and self.size_bytes is not None:
            metrics |= {"num_parameters": self.num_parameters, "size_bytes": self.size_bytes}
        if self.scores:
            metrics |= {"accuracy": self.scores.accuracy, "ece": self.scores.ece}
        return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Teacher and student on the same images; a pure function of models and images.

    Example:
        >>> import torch
        >>> from dfkd_core import EvaluationReport, ModelCard, Teacher, build_classifier, evaluate
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> teacher, student = Teacher(build_classifier(card, seed=0)), build_classifier(card, seed=1)
        >>> images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
        >>> report: EvaluationReport = evaluate(student, teacher, held_out=images)
        >>> list(report.to_metrics()), report.num_images
        (['teacher', 'student', 'proxy'], 4)
    """

    teacher: ModelReport
    """The teacher's figures."""
    student: ModelReport
    """The student's figures."""
    agreement: float
    """Share of images for which both predict the same class."""
    kl: float
    """Mean KL(teacher || student) at temperature 1, in nats."""
    num_images: int
    """Number of images."""
    answers: tuple[tuple[int, ...], ...]
    """Number of images per class predicted by the teacher (row) and by the student (column)."""
    proxy: bool
    """Whether the images were held-out ones without labels, so that agreement only hints at the real one."""
    predictions: Predictions = field(repr=False)
    """Predicted classes and their probabilities, image by image."""

    def to_metrics(self) -> dict[str, dict[str, float]]:
        """Return the single figures as `{"teacher": {...}, "student": {...}}`; shares are fractions.

        Agreement and KL are under `student`; those of a proxy are under `proxy` instead, so that nobody takes them for
        figures on real images. The proxy also has the number of classes that the teacher predicts and the share of its
        most frequent one: it is easy to agree with a teacher that always predicts the same class.
        """
        joint = {"agreement": self.agreement, "kl": self.kl}
        student = self.student.to_metrics()
        if self.proxy:
            given = [sum(row) for row in self.answers]
            joint |= {"num_classes": sum(map(bool, given)), "largest_class": max(given) / self.num_images}
            return {"teacher": self.teacher.to_metrics(), "student": student, "proxy": joint}
        return {"teacher": self.teacher.to_metrics(), "student": student | joint}


def evaluate(
    student: Classifier,
    teacher: Labeller,
    *,
    data: LabelledImages | EvaluationData | None = None,
    held_out: Rows | None = None,
    config: EvaluationConfig | None = None,
    check_order: bool = False,
    on_progress: OnProgress = ignore,
) -> EvaluationReport:
    """Compare student and teacher on labelled images or, without labels, on held-out ones.

    Computes in float32 on the teacher's device.

    Args:
        student: It is moved to the teacher's device and put into eval mode.
        teacher: The reference for the student.
        data: Labelled images; they take precedence over `held_out`.
        held_out: uint8 images [n, c, h, w] that the student was not trained on; they may lie in files.
        config: Batch size and number of bins.
        check_order: Refuse labels whose classes are in another order than the teacher's, see `check_class_order`.
        on_progress: Called after each batch.

    Raises:
        DataError: There are no images, one cannot be read, they do not fit the teacher, or a label is out of range or,
            with `check_order`, of another class.

    Example:
        >>> import torch
        >>> from dfkd_core import LabelledImages, ModelCard, Teacher, build_classifier, evaluate
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> teacher, student = Teacher(build_classifier(card, seed=0)), build_classifier(card, seed=1)
        >>> images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
        >>> data = LabelledImages(images, torch.arange(4), tuple("0123456789"))
        >>> report = evaluate(student, teacher, data=data)
        >>> report.to_metrics()["student"]["accuracy"], report.proxy
        (0.25, False)
    """
    config = config or EvaluationConfig()
    images: Rows | None = data.images if data is not None else held_out
    if images is None or not len(images):
        raise DataError("There is nothing to evaluate on. Pass labelled images, or held-out images as a proxy.")
    labels = data.labels if data is not None else None
    _check_fit(images, labels, teacher)
    logits, digest = _predict(student, teacher, images, config.batch_size, on_progress)
    if labels is not None and check_order:
        check_class_order(logits[1].argmax(1), labels.cpu(), teacher.card.num_classes)
    shown = cast(Inspectable, teacher).network if has_access(teacher, "layers") else None
    classes = (logits[0].argmax(1), logits[1].argmax(1))
    agreement = (classes[0] == classes[1]).double().mean().item()
    return EvaluationReport(
        student=_model_report(student.network, logits[0], labels, config.num_bins),
        teacher=_model_report(shown, logits[1], labels, config.num_bins),
        agreement=agreement,
        kl=mean_kl(logits[1], logits[0]),
        num_images=len(images),
        answers=tuple(map(tuple, confusion_matrix(logits[0], classes[1]).tolist())),
        proxy=labels is None,
        predictions=Predictions(
            student=tuple(classes[0].tolist()),
            teacher=tuple(classes[1].tolist()),
            student_confidence=_confidence(logits[0]),
            teacher_confidence=_confidence(logits[1]),
            labels=None if labels is None else tuple(labels.tolist()),
            images_sha256=digest.of(images, labels),
        ),
    )


def _confidence(logits: Tensor) -> tuple[float, ...]:
    return tuple(confidence_and_class(logits)[0].float().tolist())


@torch.inference_mode()
def _predict(
    student: Classifier, teacher: Labeller, images: Rows, batch_size: int, on_progress: OnProgress
) -> tuple[tuple[Tensor, Tensor], ImagesDigest]:
    """Return the logits [n, k] of student and teacher on the CPU, and the digest of the images."""
    student = student.to(teacher.device).eval()
    own_passes, digest = PassSizes(student, memory=teacher.memory), ImagesDigest()
    parts = []
    for first in range(0, len(images), batch_size):
        done = min(first + batch_size, len(images))
        pixels = images[torch.arange(first, done).to(images.device)]
        digest.add(pixels)
        batch = dequantise(move_batch(pixels, teacher.device), memory_format=torch.channels_last)
        student_logits = joined([student(part).cpu() for part in own_passes.split(batch)])
        parts.append((student_logits, teacher.label(batch).cpu()))
        on_progress(Progress(stage="evaluate", done=done, total=len(images), unit="images"))
    by_model = zip(*parts, strict=True)
    of_student, of_teacher = (torch.cat(logits) for logits in by_model)
    return (of_student, of_teacher), digest


def _model_report(network: nn.Module | None, logits: Tensor, labels: Tensor | None, num_bins: int) -> ModelReport:
    scores = None if labels is None else label_scores(logits, labels, num_bins)
    if network is None:
        return ModelReport(num_parameters=None, size_bytes=None, scores=scores)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return ModelReport(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        size_bytes=len(save(tensors)),
        scores=scores,
    )


def _check_fit(images: Rows, labels: Tensor | None, teacher: Labeller) -> None:
    card = teacher.card
    if images.dtype != torch.uint8:
        raise DataError(
            f"The images are {images.dtype} and must be uint8, 0 to 255. Convert images in [0, 1] with: "
            "dfkd_core.common.pixels.quantise"
        )
    if tuple(images.shape[1:]) != card.image_shape:
        raise DataError(
            f"The images have shape {tuple(images.shape[1:])} but the teacher takes {card.image_shape}. "
            "Use the data set that the teacher was trained for: data.dataset and data.image_size"
        )
    if labels is not None and not (0 <= int(labels.min()) and int(labels.max()) < card.num_classes):
        raise DataError(
            f"The labels range from {int(labels.min())} to {int(labels.max())}, but the teacher has {card.num_classes} "
            f"classes: labels must be 0 to {card.num_classes - 1}. Correct data.dataset"
        )
