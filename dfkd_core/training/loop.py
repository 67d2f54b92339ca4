"""Training on a set of images: the epoch loop shared by teacher and student.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dfkd_core.common.cuda_graphs import recorded_on_gpu
from dfkd_core.common.prefetching import prefetched
from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import DfkdError
from dfkd_core.training.halves import add_gradients, both

__all__ = ["EpochRecord", "Schedule", "Step", "build_optimizer", "epoch_batches", "run_epochs"]

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
    """One step of a training: loads images, labels them, and computes the loss."""

    def begin(self, epoch: int) -> None:
        """Prepare for the batches of an epoch, counted from 1."""

    def load(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return tensors [m, ...] for the images at these positions, int64 [m], with all random changes."""

    def label(self, *loaded: Tensor) -> Batch:
        """Return the batch of the tensors from `load`; must not read the model in training.

        On a GPU, this and `terms` are recorded once for each m and replayed, see `common.cuda_graphs`.
        """

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named terms of a batch's loss, scalars whose sum is the loss."""

    def twin(self) -> tuple[nn.Module, Step[Batch]] | None:
        """Return a `twin_of` all that is trained, in its mode, and the same step on it; None to keep batches whole."""

    def halves(self, batch: Batch) -> tuple[Batch, Batch, float]:
        """Return a batch in two parts, and the share of its images in the first one; 1 for a single image."""


def epoch_batches(schedule: Schedule, epoch: int, *, seed: int) -> tuple[torch.Generator, tuple[Tensor, ...]]:
    """Return the generator of an epoch's draws and the positions of its batches, int64 [m] each; all images once.

    Args:
        schedule: Number of images and of batches.
        epoch: Number of the epoch, from 1.
        seed: The run's seed.
    """
    generator = derive_generator(seed, "epoch", epoch)
    order = torch.randperm(schedule.num_images, generator=generator)
    return generator, order.tensor_split(schedule.steps_per_epoch)


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
        prefetch: Number of batches that a second thread loads and labels ahead on a CPU. Above 0, the two halves of a
            batch are computed at once, if the step allows it. Does not affect the result.

    Raises:
        DfkdError: A term of the loss is not finite; of class `error`, names the first such term, epoch and step.
    """
    steps = _steps(trained.train(), optimizer, step, at_once=prefetch > 0)
    for epoch in range(first_epoch, schedule.epochs + 1):
        trained.train()
        step.begin(epoch)
        generator, batches = epoch_batches(schedule, epoch, seed=seed)
        ready = steps.ready((step.load(positions, generator) for positions in batches), prefetch)
        rows = []
        with closing(ready), single_values_normalised(trained):
            for done, batch in enumerate(ready, start=(epoch - 1) * schedule.steps_per_epoch):
                _set_rate(optimizer, schedule.factor(done))
                rows.append(steps.take(batch))
        # One read per epoch, since each read makes a GPU wait.
        means = _finite_means(torch.stack(rows).cpu(), steps.names, epoch, error)
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
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    is_on_gpu = _is_on_gpu(classifier)
    groups = [
        # A recorded step reads its learning rate from a tensor.
        {"params": group, "weight_decay": decay, "peak": learning_rate, "lr": _rate(learning_rate, group, is_on_gpu)}
        for group, decay in ((matrices, weight_decay), (vectors, 0.0))
    ]
    return torch.optim.AdamW(groups, fused=True, capturable=is_on_gpu)


def _rate(learning_rate: float, parameters: list[nn.Parameter], is_on_gpu: bool) -> float | Tensor:
    return torch.tensor(learning_rate, device=parameters[0].device) if is_on_gpu and parameters else learning_rate


def _is_on_gpu(module: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in module.parameters())


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


def _set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak"] * factor)
        else:
            group["lr"] = group["peak"] * factor


def _steps(trained: nn.Module, optimizer: torch.optim.Optimizer, step: Step[Batch], *, at_once: bool) -> _Steps:
    if _is_on_gpu(trained):
        return _RecordedSteps(optimizer, step)
    twin = step.twin()
    return _HalvedSteps(optimizer, step, trained, *twin, at_once) if twin else _PlainSteps(optimizer, step)


class _Steps(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the last step's terms."""

    def ready(self, loaded: Iterator[tuple[Tensor, ...]], prefetch: int) -> Generator[Any]:
        """Yield the arguments of `take`, from the tensors that `Step.load` returns."""

    def take(self, batch: Any) -> Tensor:
        """Take one step and return the terms of the loss before it, [t]."""


class _PlainSteps(Generic[Batch]):
    """Steps on a CPU, where a second thread labels ahead."""

    def __init__(self, optimizer: torch.optim.Optimizer, step: Step[Batch]) -> None:
        self._optimizer, self._step = optimizer, step
        self.names: tuple[str, ...] = ()

    def ready(self, loaded: Iterator[tuple[Tensor, ...]], prefetch: int) -> Generator[Batch]:
        return prefetched((self._step.label(*tensors) for tensors in loaded), prefetch)

    def take(self, batch: Batch) -> Tensor:
        terms = self._step.terms(batch)
        self._optimizer.zero_grad()
        torch.autograd.backward(torch.stack(tuple(terms.values())).sum())
        self._optimizer.step()
        self.names = tuple(terms)
        return torch.stack([term.detach() for term in terms.values()])


class _HalvedSteps(_PlainSteps[Batch]):
    """Steps on a CPU on two halves of each batch, with a copy of the network for the second one."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        step: Step[Batch],
        trained: nn.Module,
        twin: nn.Module,
        twin_step: Step[Batch],
        at_once: bool,
    ) -> None:
        super().__init__(optimizer, step)
        self._trained, self._twin, self._twin_step, self._at_once = trained, twin, twin_step, at_once

    def take(self, batch: Batch) -> Tensor:
        first, second, share = self._step.halves(batch)
        if share == 1:
            return super().take(batch)
        self._optimizer.zero_grad()
        terms = both(
            lambda: self._backward(self._step, first, share),
            lambda: self._backward(self._twin_step, second, 1 - share),
            at_once=self._at_once,
        )
        add_gradients(self._trained, self._twin)
        self._optimizer.step()
        return terms[0] + terms[1]

    def _backward(self, step: Step[Batch], half: Batch, share: float) -> Tensor:
        """Add the gradient of a half's part of the loss; return the parts of the terms, [t]."""
        terms = step.terms(half)
        self.names = tuple(terms)
        parts = torch.stack(tuple(terms.values())) * share
        torch.autograd.backward(parts.sum())
        return parts.detach()


class _RecordedSteps(Generic[Batch]):
    """Steps on a GPU, recorded once for each size of a batch: labels, loss, gradient and the optimizer's step."""

    def __init__(self, optimizer: torch.optim.Optimizer, step: Step[Batch]) -> None:
        self._plain, self._step = _PlainSteps(optimizer, step), step
        self._of_size: dict[int, _Repeated] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return self._plain.names

    def ready(self, loaded: Iterator[tuple[Tensor, ...]], prefetch: int) -> Generator[tuple[Tensor, ...]]:
        # The GPU works on while the next ones are loaded, so no thread is needed.
        yield from loaded

    def take(self, batch: tuple[Tensor, ...]) -> Tensor:
        size = len(batch[0])
        if size not in self._of_size:
            self._of_size[size] = _Repeated(batch, lambda *tensors: self._plain.take(self._step.label(*tensors)))
        return self._of_size[size](batch)


class _Repeated:
    """A function of tensors of fixed shapes, recorded on their GPU."""

    def __init__(self, example: tuple[Tensor, ...], function: Callable[..., Tensor]) -> None:
        self._inputs = tuple(torch.empty_like(tensor) for tensor in example)
        self._function, self._output = function, torch.empty(0)
        self._repeat = recorded_on_gpu(self._work, example[0].device)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._repeat()
        # The next repetition overwrites it.
        return self._output.clone()

    def _work(self) -> None:
        self._output = self._function(*self._inputs)


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
