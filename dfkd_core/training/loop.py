"""Training on a set of images: the epoch loop shared by teacher and student.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from dfkd_core.common.prefetching import prefetched
from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import DfkdError

__all__ = ["EpochRecord", "Schedule", "Step", "build_optimizer", "run_epochs"]

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """The figures of one epoch of training."""

    epoch: int
    """Number of the epoch, from 1."""
    loss: float
    """Mean loss over the epoch's steps."""
    learning_rate: float
    """Learning rate at the epoch's last step."""
    terms: dict[str, float]
    """Mean of each term of the loss; their sum is `loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Length, batch size and learning-rate schedule of a training."""

    num_images: int
    """Number n of images in the set."""
    batch_size: int
    """Most images per step; the batches of an epoch differ in size by at most one image."""
    epochs: int
    """Passes over the set."""
    warmup_fraction: float
    """Share of all steps, in [0, 1], in which the learning rate rises."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return math.ceil(self.num_images / self.batch_size)

    def factor(self, step: int) -> float:
        """Return the factor in (0, 1] on the learning rate: a linear rise, then half a cosine towards zero.

        Args:
            step: Number of steps already taken.
        """
        total_steps = self.epochs * self.steps_per_epoch
        warmup_steps = round(total_steps * self.warmup_fraction)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


class Step(Protocol[Batch]):
    """One step of a training: makes the batch and computes the loss."""

    def load(self, positions: Tensor, generator: torch.Generator) -> Batch:
        """Return the batch of the images at these positions, int64 [m]; must not read the model in training."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named terms of a batch's loss, scalars whose sum is the loss."""


def run_epochs(
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Step[Batch],
    schedule: Schedule,
    *,
    seed: int,
    error: type[DfkdError],
    first_epoch: int = 1,
    prefetch: int = 0,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch and yield a record after each.

    An epoch's shuffle and draws depend only on the seed and the epoch, so a run that starts at `first_epoch` with the
    weights and the optimizer state of that epoch repeats the rest of an uninterrupted run. Each epoch uses every image
    once, in batches of equal size, to one image.

    Args:
        trained: The model and all other modules that are trained.
        optimizer: Its optimizer, from `build_optimizer`.
        step: Makes the batches and computes their losses.
        schedule: Number and size of the batches, and the learning rate.
        seed: Seed of the shuffles and of the generator that `step.load` receives.
        error: Class of the exception for a loss that is not finite.
        first_epoch: Number of the first epoch to run.
        prefetch: Number of batches that a second thread loads ahead; does not affect the result.

    Raises:
        DfkdError: A term of the loss is not finite; of class `error`, names the first such term, epoch and step.
    """
    for epoch in range(first_epoch, schedule.epochs + 1):
        trained.train()
        generator = derive_generator(seed, "epoch", epoch)
        batches = torch.randperm(schedule.num_images, generator=generator).tensor_split(schedule.steps_per_epoch)
        loaded = prefetched((step.load(positions, generator) for positions in batches), prefetch)
        rows = []
        with closing(loaded), single_values_normalised(trained):
            for done, batch in enumerate(loaded, start=(epoch - 1) * schedule.steps_per_epoch):
                terms = _take_step(optimizer, batch, step, schedule.factor(done))
                rows.append(torch.stack([term.detach() for term in terms.values()]))
        # One read per epoch, since each read makes a GPU wait.
        means = _finite_means(torch.stack(rows).cpu(), tuple(terms), epoch, error)
        rate = float(optimizer.param_groups[0]["lr"])
        yield EpochRecord(epoch=epoch, loss=sum(means.values()), learning_rate=rate, terms=means)


def build_optimizer(classifier: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW with weight decay only on tensors with two or more axes.

    Args:
        classifier: The model whose parameters are trained.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
    """
    parameters = list(classifier.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "peak": learning_rate},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "peak": learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


@contextmanager
def single_values_normalised(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm use its stored moments while the block runs if a batch has one value per channel.

    Such a batch has no variance, and torch refuses it in training mode. It occurs if the last batch is a single image.
    """
    alone: set[nn.Module] = set()

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if module.training and given and given[0].dim() > 1 and given[0].numel() == given[0].shape[1]:
            alone.add(module.eval())

    def after(module: nn.Module, given: object, output: object) -> None:
        if module in alone:
            alone.remove(module.train())

    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(before).remove)
            stack.callback(norm.register_forward_hook(after).remove)
        yield


def _take_step(optimizer: torch.optim.Optimizer, batch: Batch, step: Step[Batch], factor: float) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    terms = step.terms(batch)
    optimizer.zero_grad()
    torch.autograd.backward(torch.stack(tuple(terms.values())).sum())
    optimizer.step()
    return terms


def _finite_means(rows: Tensor, names: tuple[str, ...], epoch: int, error: type[DfkdError]) -> dict[str, float]:
    """Return the mean of each column of the loss terms [steps, terms]; raise `error` if a value is not finite."""
    faults = (~torch.isfinite(rows)).nonzero()
    if len(faults):
        step, term = faults[0].tolist()
        raise error(
            f"The loss is not finite: term {names[term]} is {rows[step, term].item()} in epoch {epoch}, "
            f"step {step + 1} of {len(rows)}. Lower the learning rate, or check the teacher for NaN."
        )
    return dict(zip(names, rows.double().mean(0).tolist(), strict=True))
