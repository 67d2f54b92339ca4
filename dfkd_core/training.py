"""Training on a set of images: the epoch loop and the teacher's training on labels.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd_core.augmentation import AugmentationConfig, augment
from dfkd_core.data import LabelledImages, dataset_faults
from dfkd_core.devices import autocast_on_gpu
from dfkd_core.errors import DataError, DfkdError, TeacherError
from dfkd_core.layers import parse_layer
from dfkd_core.models import Classifier, ModelCard, build_classifier
from dfkd_core.networks import default_layer, is_built_in, network_names
from dfkd_core.prefetching import prefetched
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.rows import Rows
from dfkd_core.sections import Fraction, NonNegative, Positive, PositiveInt, config_section
from dfkd_core.seeding import derive_generator
from dfkd_core.source import SourceConfig

__all__ = [
    "EpochRecord",
    "TeacherConfig",
    "TrainingResult",
    "build_optimizer",
    "load_batch",
    "move_batch",
    "pixel_statistics",
    "run_epochs",
    "train_teacher",
    "warmup_cosine",
]

Batch = TypeVar("Batch")


@config_section
class TeacherConfig:
    """Where the teacher comes from: `source`, or training on labelled images.

    The defaults of the training take LeNet-5 on Fashion-MNIST to about 91.5 % in one to two minutes of two cores.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    network: str = "lenet5"
    """Built-in network to train."""
    dataset: str = ""
    """Data set that the teacher is trained on, built in or `torchvision:NAME`; empty takes `data.dataset`."""
    layer: str = ""
    """Address of the layer whose features are modelled, see `dfkd layers`; empty takes what the last linear layer
    reads, or a built-in network's usual one."""
    epochs: PositiveInt = 10
    """Passes over the training set."""
    batch_size: PositiveInt = 256
    """Images per step; 128 to 512 are the fastest on a CPU."""
    learning_rate: Positive = 4e-3
    """Highest learning rate of AdamW, reached after the warm-up."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps in which the learning rate rises; it then falls to zero along a cosine."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay of the weight matrices and kernels; biases and norms have none."""
    label_smoothing: Fraction = 0.0
    """Probability mass taken from the label and spread over all classes; above 0 it flattens the soft targets."""
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(flip=True))
    """How training images are moved."""

    def faults(self) -> Iterator[str]:
        """Yield what is wrong beyond single ranges."""
        if not is_built_in(self.network):
            yield f"network must be one of {', '.join(network_names())}, got {self.network!r}"
        if self.dataset:
            yield from dataset_faults(self.dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch of training came to."""

    epoch: int
    """Number of the epoch, from 1."""
    loss: float
    """Mean of the loss over the epoch's steps."""
    learning_rate: float
    """Learning rate at the epoch's last step."""
    terms: dict[str, float]
    """Mean of each term of the loss; they add up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A trained teacher and how it got there."""

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
    on_progress: OnProgress = ignore,
) -> TrainingResult:
    """Train a classifier with cross-entropy; the last epoch counts.

    Args:
        config: How to train.
        data: Training images and labels; nothing else is looked at.
        seed: Seed of the first weights, the shuffles and the augmentation.
        device: Where to compute.
        on_progress: Told after each epoch.

    Raises:
        ConfigError: The network rejects the image size.
        DataError: There are fewer images than classes, or a label is out of range.
        TeacherError: The network has no such layer, or the loss is not finite.
    """
    _check_labels(data)
    classifier = build_classifier(_card(config, data), seed=seed).to(device)
    parse_layer(classifier.card.layer).module(classifier)
    images, labels = data.images.to(device), data.labels.to(device)

    def load(positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return augment(load_batch(images, positions), config.augmentation, generator), labels[positions]

    def loss_terms(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        moved, classes = batch
        with autocast_on_gpu(images.device):
            logits = classifier(moved)
        smoothing = config.label_smoothing
        return {"cross_entropy": functional.cross_entropy(logits.float(), classes, label_smoothing=smoothing)}

    optimizer = build_optimizer(classifier, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    history: list[EpochRecord] = []
    for record in run_epochs(
        classifier,
        optimizer,
        load,
        loss_terms,
        num_images=len(images),
        batch_size=config.batch_size,
        epochs=config.epochs,
        warmup_fraction=config.warmup_fraction,
        seed=seed,
        error=TeacherError,
    ):
        history.append(record)
        metrics = {"loss": record.loss}
        on_progress(Progress(stage="teacher", done=record.epoch, total=config.epochs, unit="epochs", metrics=metrics))
    return TrainingResult(classifier=classifier.cpu().eval(), history=tuple(history))


def run_epochs(
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    load: Callable[[Tensor, torch.Generator], Batch],
    loss_terms: Callable[[Batch], dict[str, Tensor]],
    *,
    num_images: int,
    batch_size: int,
    epochs: int,
    warmup_fraction: float,
    seed: int,
    error: type[DfkdError],
    first_epoch: int = 1,
    prefetch: int = 0,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch and yield a record after each.

    An epoch's shuffle and draws depend on (seed, epoch) only, so that a run which starts at `first_epoch` with the
    weights and the optimizer state of that moment repeats the rest of an undisturbed run. Batches differ in size by
    one image at most: every image is seen once per epoch and no batch is a small remainder.

    Args:
        trained: The model in training, with whatever is trained beside it.
        optimizer: Its optimizer, from `build_optimizer`.
        load: Makes a batch from the images' positions and the epoch's generator; must not look at what is trained.
        loss_terms: Gives the batch's loss as named terms to be added up.
        num_images: Size n of the set.
        batch_size: Most images per step.
        epochs: Last epoch.
        warmup_fraction: Share of all steps before the highest learning rate.
        seed: Seed of the shuffles and of the generator that `load` gets.
        error: Class of the error for a loss that is not finite.
        first_epoch: Number of the first epoch to run.
        prefetch: Batches that another thread loads ahead; does not change the result.

    Raises:
        DfkdError: As `error`, for the first term of a loss that is not finite, with epoch and step.
    """
    num_steps = math.ceil(num_images / batch_size)
    for epoch in range(first_epoch, epochs + 1):
        trained.train()
        generator = derive_generator(seed, "epoch", epoch)
        batches = torch.randperm(num_images, generator=generator).tensor_split(num_steps)
        loaded = prefetched((load(positions, generator) for positions in batches), prefetch)
        rows = []
        with closing(loaded):
            for done, batch in enumerate(loaded, start=(epoch - 1) * num_steps):
                factor = warmup_cosine(done, total_steps=epochs * num_steps, warmup_fraction=warmup_fraction)
                terms = _take_step(optimizer, batch, loss_terms, factor)
                rows.append(torch.stack([term.detach() for term in terms.values()]))
        # One look per epoch, since each look would make a GPU wait.
        means = _finite_means(torch.stack(rows).cpu(), tuple(terms), epoch, error)
        rate = float(optimizer.param_groups[0]["lr"])
        yield EpochRecord(epoch=epoch, loss=sum(means.values()), learning_rate=rate, terms=means)


def load_batch(images: Rows, positions: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return the images at `positions` of a uint8 set [n, c, h, w] as float32 in [0, 1], channels last.

    Args:
        images: The set.
        positions: int64 [m].
        device: Where the batch is wanted; None leaves it where the set is.
    """
    batch = move_batch(images[positions.to(images.device)], device or images.device)
    return batch.to(torch.float32, memory_format=torch.channels_last).div_(255)


def move_batch(batch: Tensor, device: torch.device | str) -> Tensor:
    """Return a batch on a device; to a GPU it is copied without waiting for what the GPU does meanwhile."""
    to_gpu = torch.device(device).type == "cuda" and not batch.is_cuda
    return batch.pin_memory().to(device, non_blocking=True) if to_gpu else batch.to(device)


def warmup_cosine(step: int, *, total_steps: int, warmup_fraction: float) -> float:
    """Return the factor in (0, 1] on the learning rate: a straight rise, then half a cosine towards zero.

    Args:
        step: Steps already taken.
        total_steps: Steps of the whole training.
        warmup_fraction: Share of them in which the factor rises.
    """
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


def build_optimizer(
    classifier: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    name: Literal["adamw", "sgd"] = "adamw",
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """Return AdamW or SGD with Nesterov momentum; weight decay holds for tensors of two or more axes only.

    Args:
        classifier: The model whose parameters are trained.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay: decoupled for AdamW, added to the gradient for SGD.
        name: Which optimizer.
        momentum: Momentum of SGD.
    """
    parameters = list(classifier.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "peak": learning_rate},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "peak": learning_rate},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)


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
        raise DataError(f"{num_images} training images for {num_classes} classes: give at least one image per class.")
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"The labels go from {low} to {high}; with {num_classes} classes they must be 0 to {num_classes - 1}."
        )


def _take_step(
    optimizer: torch.optim.Optimizer, batch: Batch, loss_terms: Callable[[Batch], dict[str, Tensor]], factor: float
) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    terms = loss_terms(batch)
    optimizer.zero_grad()
    torch.autograd.backward(torch.stack(tuple(terms.values())).sum())
    optimizer.step()
    return terms


def _finite_means(rows: Tensor, names: tuple[str, ...], epoch: int, error: type[DfkdError]) -> dict[str, float]:
    """Average each column of the loss terms [steps, terms], if all of them are finite."""
    faults = (~torch.isfinite(rows)).nonzero()
    if len(faults):
        step, term = faults[0].tolist()
        raise error(
            f"The loss is not finite: term {names[term]} is {rows[step, term].item()} in epoch {epoch}, "
            f"step {step + 1} of {len(rows)}. Lower the learning rate, or look for NaN in the teacher."
        )
    return dict(zip(names, rows.double().mean(0).tolist(), strict=True))
