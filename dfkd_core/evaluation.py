"""How good a student is, alone and beside its teacher: accuracy, calibration, agreement, size and latency.

n images, k classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from dfkd_core.class_order import check_class_order
from dfkd_core.data import LabelledImages
from dfkd_core.errors import DataError
from dfkd_core.evaluation_data import EvaluationData
from dfkd_core.micro_batches import PassSizes, joined
from dfkd_core.models import Classifier
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.rows import Rows
from dfkd_core.sections import PositiveInt, config_section
from dfkd_core.teacher import Teacher
from dfkd_core.training import load_batch

__all__ = [
    "EvaluationConfig",
    "EvaluationReport",
    "LabelScores",
    "ModelReport",
    "confusion_matrix",
    "evaluate",
    "expected_calibration_error",
    "mean_kl",
    "measure_latency",
]


_VALUES_AT_ONCE = 2**24


@config_section
class EvaluationConfig:
    """How models are evaluated."""

    batch_size: PositiveInt = 500
    """Images per forward pass; does not change the figures beyond rounding."""
    num_bins: PositiveInt = 15
    """Bins of equal width of the expected calibration error."""
    num_latency_runs: PositiveInt = 50
    """Timed forward passes per batch size; their median counts."""
    num_held_out_images: PositiveInt = 20_000
    """Synthetic images that stand in for real ones where `data.dataset` is `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScores:
    """What the true labels say of a model."""

    accuracy: float
    """Share of images whose most likely class is the label."""
    ece: float
    """Expected calibration error, see `expected_calibration_error`."""
    per_class_accuracy: tuple[float | None, ...]
    """Share of each class's images that get their label; None for a class without images."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images per true class (row) and predicted class (column)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model's figures."""

    num_parameters: int
    """Trainable numbers in the network."""
    size_bytes: int
    """Size of its safetensors file."""
    scores: LabelScores | None
    """None where there were no labels."""

    def to_metrics(self) -> dict[str, float]:
        """Return the single figures by name; shares are fractions."""
        metrics: dict[str, float] = {"num_parameters": self.num_parameters, "size_bytes": self.size_bytes}
        if self.scores:
            metrics |= {"accuracy": self.scores.accuracy, "ece": self.scores.ece}
        return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Teacher and student on the same images; a pure function of models and images."""

    teacher: ModelReport
    """The teacher's figures."""
    student: ModelReport
    """The student's figures."""
    agreement: float
    """Share of images for which both give the same class."""
    kl: float
    """Mean KL(teacher || student) at temperature 1, in nats."""
    num_images: int
    """Images looked at."""
    answers: tuple[tuple[int, ...], ...]
    """Number of images per class that the teacher gives (row) and that the student gives (column)."""
    proxy: bool
    """Whether the images were held-out ones without labels, so that agreement only hints at the real one."""

    def to_metrics(self) -> dict[str, dict[str, float]]:
        """Return the single figures as `{"teacher": {...}, "student": {...}}`; shares are fractions.

        Agreement and KL stand with the student; those of a proxy stand under `proxy` instead, so that they are never
        taken for figures on real images. Beside them stand how many classes the teacher gives and the share of the
        one that it gives most: a teacher that always says the same is easily agreed with.
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
    teacher: Teacher,
    *,
    data: LabelledImages | EvaluationData | None = None,
    held_out: Rows | None = None,
    config: EvaluationConfig | None = None,
    check_order: bool = False,
    on_progress: OnProgress = ignore,
) -> EvaluationReport:
    """Compare student and teacher on labelled images, or on held-out ones where there are no labels.

    Computes in float32 on the teacher's device.

    Args:
        student: Is moved to the teacher's device and put into eval mode.
        teacher: What the student should do.
        data: Labelled images; they win over `held_out`.
        held_out: uint8 images [n, c, h, w] that the student was not trained on; they may lie in files.
        config: Batch size and number of bins.
        check_order: Refuse labels that count the classes in another order than the teacher, see `check_class_order`.
        on_progress: Told after each batch.

    Raises:
        DataError: There are no images, one cannot be read, they do not fit the teacher, or a label is out of range or,
            with `check_order`, another class's.
    """
    config = config or EvaluationConfig()
    images: Rows | None = data.images if data is not None else held_out
    if images is None or not len(images):
        raise DataError("There is nothing to evaluate on: give labelled images, or held-out images as a proxy.")
    labels = data.labels if data is not None else None
    _check_fit(images, labels, teacher)
    logits = _predict(student, teacher, images, config.batch_size, on_progress)
    if labels is not None and check_order:
        check_class_order(logits[1].argmax(1), labels.cpu(), teacher.card.num_classes)
    agreement = (logits[0].argmax(1) == logits[1].argmax(1)).double().mean().item()
    return EvaluationReport(
        student=_model_report(student, logits[0], labels, config.num_bins),
        teacher=_model_report(teacher.classifier, logits[1], labels, config.num_bins),
        agreement=agreement,
        kl=mean_kl(logits[1], logits[0]),
        num_images=len(images),
        answers=tuple(map(tuple, confusion_matrix(logits[0], logits[1].argmax(1)).tolist())),
        proxy=labels is None,
    )


@torch.inference_mode()
def measure_latency(
    classifier: Classifier,
    *,
    batch_sizes: tuple[int, ...] = (1, 64),
    num_runs: int = 50,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the median milliseconds of a forward pass as `{"batch_1_ms": ..., "batch_64_ms": ...}`.

    The only figures that differ from run to run, so they are apart from `EvaluationReport`.

    Args:
        classifier: Is moved to `device` and put into eval mode.
        batch_sizes: Images per forward pass.
        num_runs: Timed passes per batch size, after a tenth as many that are not timed.
        device: Where to compute.
    """
    classifier = classifier.to(device).eval()
    medians = {}
    for size in batch_sizes:
        images = torch.full((size, *classifier.card.image_shape), 0.5, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = [_time_forward(classifier, images) for _ in range(num_runs + num_runs // 10 + 1)]
        medians[f"batch_{size}_ms"] = 1000 * statistics.median(seconds[-num_runs:])
    return medians


def expected_calibration_error(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> float:
    """Return the sum over bins of (images in the bin / n) * |accuracy - mean confidence|.

    The bins cut the confidence (0, 1] into equal widths, closed on the right (Guo et al., 2017, arXiv 1706.04599,
    equation 3).

    Args:
        logits: Logits [n, k].
        labels: True classes [n].
        num_bins: Number of bins.
    """
    parts = [part.double().softmax(1).max(1) for part in _in_parts(logits)]
    confidence, predicted = (torch.cat([part[place] for part in parts]) for place in range(2))
    gap = (predicted == labels).double() - confidence
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    return (torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, gap).abs().sum() / len(labels)).item()


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Count images per true class (row) and most likely class (column): int64 [k, k].

    Args:
        logits: Logits [n, k].
        labels: True classes [n].
    """
    num_classes = logits.shape[1]
    cells = labels * num_classes + logits.argmax(1)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def mean_kl(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Return the mean over images of KL(teacher || student) at temperature 1, in nats.

    Args:
        teacher_logits: Logits [n, k].
        student_logits: Logits [n, k].
    """
    total = 0.0
    for student, teacher in zip(_in_parts(student_logits), _in_parts(teacher_logits), strict=True):
        student_log, teacher_log = student.double().log_softmax(1), teacher.double().log_softmax(1)
        total += functional.kl_div(student_log, teacher_log, log_target=True, reduction="sum").item()
    return total / len(teacher_logits)


def _in_parts(logits: Tensor) -> Sequence[Tensor]:
    """Return logits [n, k] in parts whose copies in double precision take little memory."""
    parts: Sequence[Tensor] = torch.split(logits, max(1, _VALUES_AT_ONCE // logits.shape[1]))
    return parts


@torch.inference_mode()
def _predict(
    student: Classifier, teacher: Teacher, images: Rows, batch_size: int, on_progress: OnProgress
) -> tuple[Tensor, Tensor]:
    """Return the logits [n, k] of student and teacher on the CPU."""
    student = student.to(teacher.device).eval()
    own_passes = PassSizes(student, memory=teacher.passes.memory)
    parts = []
    for first in range(0, len(images), batch_size):
        done = min(first + batch_size, len(images))
        batch = load_batch(images, torch.arange(first, done), teacher.device)
        student_logits = joined([student(part).cpu() for part in own_passes.split(batch)])
        parts.append((student_logits, joined([teacher(part).cpu() for part in teacher.passes.split(batch)])))
        on_progress(Progress(stage="evaluate", done=done, total=len(images), unit="images"))
    by_model = zip(*parts, strict=True)
    of_student, of_teacher = (torch.cat(logits) for logits in by_model)
    return of_student, of_teacher


def _model_report(classifier: Classifier, logits: Tensor, labels: Tensor | None, num_bins: int) -> ModelReport:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    return ModelReport(
        num_parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        size_bytes=len(save(tensors)),
        scores=None if labels is None else _label_scores(logits, labels, num_bins),
    )


def _label_scores(logits: Tensor, labels: Tensor, num_bins: int) -> LabelScores:
    confusion = confusion_matrix(logits, labels)
    hits, totals = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return LabelScores(
        accuracy=sum(hits) / len(labels),
        ece=expected_calibration_error(logits, labels, num_bins=num_bins),
        per_class_accuracy=tuple(hit / total if total else None for hit, total in zip(hits, totals, strict=True)),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def _check_fit(images: Rows, labels: Tensor | None, teacher: Teacher) -> None:
    card = teacher.card
    if tuple(images.shape[1:]) != card.image_shape:
        raise DataError(
            f"The images have shape {tuple(images.shape[1:])} and the teacher takes {card.image_shape}. "
            "Use the data set that the teacher was trained for: data.dataset and data.image_size"
        )
    if labels is not None and not (0 <= int(labels.min()) and int(labels.max()) < card.num_classes):
        raise DataError(
            f"The labels go from {int(labels.min())} to {int(labels.max())} and the teacher has {card.num_classes} "
            f"classes: labels must be 0 to {card.num_classes - 1}. Correct data.dataset"
        )


def _time_forward(classifier: Classifier, images: Tensor) -> float:
    started = time.perf_counter()
    classifier(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
