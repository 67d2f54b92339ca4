"""Training a teacher on labelled images.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.common.pixels import load_batch, move_batch
from dfkd_core.data.datasets import LabelledImages, dataset_faults
from dfkd_core.errors import DataError, TeacherError
from dfkd_core.models.built_in import default_layer, is_built_in, network_names
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.layers import parse_layer
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import Fraction, NonNegative, Positive, PositiveInt, config_section
from dfkd_core.teachers.source import SourceConfig
from dfkd_core.training.augmentation import AugmentationConfig, augment
from dfkd_core.training.halves import first_rows, is_divisible, twin_of
from dfkd_core.training.loop import EpochRecord, Schedule, build_optimizer, run_epochs

__all__ = ["TeacherConfig", "TrainingResult", "pixel_statistics", "train_teacher"]


@config_section
class TeacherConfig:
    """The teacher: an existing one (`source`), or one trained on labelled images.

    With the default training, LeNet-5 reaches about 90.7 % on Fashion-MNIST in one to two minutes on two cores.

    Example:
        >>> from dfkd_core import TeacherConfig
        >>> config = TeacherConfig(network="lenet5@0.5", epochs=3)
        >>> config.batch_size, config.augmentation.flip
        (256, True)
        >>> TeacherConfig(epochs=0)
        Traceback (most recent call last):
            ...
        dfkd_core.errors.ConfigError: epochs must be at least 1, got 0
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    network: str = "lenet5"
    """Built-in network to train."""
    dataset: str = ""
    """Data set that the teacher is trained on, built in or `torchvision:NAME`; empty takes `data.dataset`."""
    layer: str = ""
    """Address of the layer whose features are modelled, see `dfkd layers`; empty takes the input of the last linear
    layer, or the usual layer of a built-in network."""
    epochs: PositiveInt = 10
    """Passes over the training set."""
    batch_size: PositiveInt = 256
    """Images per step; 128 to 512 are the fastest on a CPU."""
    learning_rate: Positive = 4e-3
    """Peak learning rate of AdamW, reached after the warm-up."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps in which the learning rate rises; it then falls to zero on a cosine."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay of weight matrices and kernels; biases and normalisation layers have none."""
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(flip=True))
    """Augmentation of the training images."""

    def faults(self) -> Iterator[str]:
        """Yield the faults that the range checks of single fields miss."""
        if not is_built_in(self.network):
            yield f"network must be one of {', '.join(network_names())}, got {self.network!r}"
        if self.dataset:
            yield from dataset_faults(self.dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A trained teacher and the record of its training."""

    classifier: Classifier
    """The trained model of the last epoch, in eval mode on the CPU."""
    history: tuple[EpochRecord, ...]
    """One record per epoch."""


def train_teacher(
    config: TeacherConfig,
    data: LabelledImages,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    prefetch: int = 0,
    on_progress: OnProgress = ignore,
) -> TrainingResult:
    """Train a classifier with cross-entropy and return the model of the last epoch.

    Args:
        config: How to train.
        data: Training images and labels, the only data used.
        seed: Seed of the first weights, the shuffles and the augmentation.
        device: Where to compute.
        prefetch: Batches that a second thread loads ahead on a CPU, about 2; does not change the result.
        on_progress: Called after each epoch.

    Raises:
        ConfigError: The network rejects the image size.
        DataError: There are fewer images than classes, or a label is out of range.
        TeacherError: The network lacks the layer `config.layer`, or the loss is not finite.

    Example:
        >>> import torch
        >>> from dfkd_core import LabelledImages, TeacherConfig, train_teacher
        >>> labels = torch.arange(32) % 2
        >>> images = (labels * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
        >>> data = LabelledImages(images, labels, class_names=("black", "white"))
        >>> result = train_teacher(TeacherConfig(epochs=2, batch_size=8), data, seed=0)
        >>> result.classifier.card.num_classes, len(result.history)
        (2, 2)
        >>> result.classifier(images[:4] / 255).argmax(1)
        tensor([0, 1, 0, 1])
    """
    _check_labels(data)
    classifier = build_classifier(_card(config, data), seed=seed).to(device)
    parse_layer(classifier.card.layer).module(classifier)
    step = _Step(classifier, data.images.to(device), data.labels.to(device), config.augmentation)
    optimizer = build_optimizer(classifier, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    schedule = Schedule(
        num_images=len(data),
        batch_size=config.batch_size,
        epochs=config.epochs,
        warmup_fraction=config.warmup_fraction,
    )
    history: list[EpochRecord] = []
    records = run_epochs(classifier, optimizer, step, schedule, seed=seed, error=TeacherError, prefetch=prefetch)
    for record in records:
        history.append(record)
        metrics = {"loss": record.loss}
        on_progress(Progress(stage="teacher", done=record.epoch, total=config.epochs, unit="epochs", metrics=metrics))
    return TrainingResult(classifier=classifier.cpu().eval(), history=tuple(history))


@dataclass(frozen=True, slots=True)
class _Step:
    """One step with cross-entropy."""

    classifier: Classifier
    images: Tensor
    labels: Tensor
    augmentation: AugmentationConfig

    def begin(self, epoch: int) -> None:
        """All epochs are alike."""

    def load(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        classes = self.labels[move_batch(positions, self.labels.device)]
        return augment(load_batch(self.images, positions), self.augmentation, generator), classes

    def label(self, *loaded: Tensor) -> tuple[Tensor, Tensor]:
        moved, classes = loaded
        return moved, classes

    def terms(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        moved, classes = batch
        with autocast_on_gpu(self.images.device):
            logits = self.classifier(moved)
        return {"cross_entropy": functional.cross_entropy(logits.float(), classes)}

    def twin(self) -> tuple[nn.Module, _Step] | None:
        if not is_divisible(self.classifier, load_batch(self.images, first_rows(len(self.images)))):
            return None
        twin = twin_of(self.classifier)
        return twin, replace(self, classifier=twin)

    def halves(self, batch: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], float]:
        moved, classes = batch
        middle = (len(moved) + 1) // 2
        return (moved[:middle], classes[:middle]), (moved[middle:], classes[middle:]), middle / len(moved)


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation on the scale [0, 1], to four decimals.

    Args:
        images: uint8 images [n, c, h, w].
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(round(mean.item(), 4))
        deviations.append(round((share * (levels - mean) ** 2).sum().sqrt().item(), 4))
    return tuple(means), tuple(deviations)


def _card(config: TeacherConfig, data: LabelledImages) -> ModelCard:
    mean, std = pixel_statistics(data.images)
    return ModelCard(
        network=config.network,
        in_channels=data.images.shape[1],
        image_size=data.images.shape[-1],
        num_classes=len(data.class_names),
        mean=mean,
        std=std,
        layer=config.layer or default_layer(config.network),
        class_names=tuple(data.class_names),
    )


def _check_labels(data: LabelledImages) -> None:
    num_images, num_classes = len(data.images), len(data.class_names)
    if num_images < num_classes:
        raise DataError(f"{num_images} training images for {num_classes} classes: use at least one image per class.")
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"The labels range from {low} to {high}; with {num_classes} classes, they must be 0 to {num_classes - 1}."
        )
