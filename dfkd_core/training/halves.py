"""Gradients of the two halves of a batch, each on a copy of the network with the same weights.

The halves are computed at once on two cores, or one after the other on one core; the bits are the same.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["add_gradients", "both", "first_rows", "is_divisible", "twin_of"]

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)

_LEAST_IMAGES = 4
_NUM_TRIED = 8
# BatchNorm over another batch changes outputs by tenths, another order of the additions by millionths.
_ROUNDING = 1e-3


def first_rows(num_images: int) -> Tensor:
    """Return the positions of the images on which `is_divisible` tries a network, int64 [n]."""
    return torch.arange(min(num_images, _NUM_TRIED))


@torch.no_grad()
def is_divisible(network: nn.Module, images: Tensor) -> bool:
    """Return whether each half of a batch has the same outputs alone, and a pass neither draws nor stores numbers.

    BatchNorm and dropout in training are not divisible; BatchNorm that keeps its moments is.

    Args:
        network: In the mode in which it is trained; not changed.
        images: float32 [n, c, h, w] in [0, 1]; fewer than four are not divided.
    """
    if len(images) < _LEAST_IMAGES:
        return False
    trial = copy.deepcopy(network)
    buffers = [buffer.clone() for buffer in trial.buffers()]
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        whole, parts = trial(images), [trial(part) for part in images.chunk(2)]
        draws = not torch.equal(before, torch.get_rng_state())
    stores = any(not torch.equal(now, then) for now, then in zip(trial.buffers(), buffers, strict=True))
    return not draws and not stores and torch.allclose(whole, torch.cat(parts), rtol=_ROUNDING, atol=_ROUNDING)


def twin_of(trained: Module) -> Module:
    """Return a copy whose weights are in the same memory, so that a step of the optimizer changes both."""
    twin = copy.deepcopy(trained)
    for own, shared in zip(twin.parameters(), trained.parameters(), strict=True):
        own.data = shared.data
    return twin


def both(first: Callable[[], T], second: Callable[[], T], *, at_once: bool) -> tuple[T, T]:
    """Return the results of two functions, computed in two threads or one after the other."""
    if not at_once:
        return first(), second()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="half") as pool:
        waiting = pool.submit(second)
        return first(), waiting.result()


@torch.no_grad()
def add_gradients(trained: nn.Module, twin: nn.Module) -> None:
    """Add the gradients of the twin to those of the trained modules, and drop them."""
    for own, other in zip(trained.parameters(), twin.parameters(), strict=True):
        if own.grad is None:
            own.grad = other.grad
        elif other.grad is not None:
            own.grad += other.grad
        other.grad = None
