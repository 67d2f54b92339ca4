"""Training on a set of images: the epoch loop and the teacher's training on labels.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from dfkd_core.common.prefetching import prefetched
from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import DfkdError

__all__ = [
    "EpochRecord",
    "build_optimizer",
    "run_epochs",
    "warmup_cosine",
]

Batch = TypeVar("Batch")


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


def build_optimizer(classifier: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW; weight decay holds for tensors of two or more axes only.

    Args:
        classifier: The model whose parameters are trained.
        learning_rate: Highest learning rate.
        weight_decay: Decoupled weight decay.
    """
    parameters = list(classifier.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "peak": learning_rate},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "peak": learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


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
