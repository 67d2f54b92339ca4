"""Gradients of the two halves of a batch, each on a copy of the network with the same weights.

The halves are computed at once on two cores, or one after the other on one core; the bits are the same.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

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

    BatchNorm and dropout in training are not divisible; BatchNorm that keeps its moments is. Neither is a network whose
    modules keep something of a pass in their attributes, or whose copy still uses it, as with a lambda that holds it.

    Args:
        network: In the mode in which it is trained; not changed by its copies, unless they hold it.
        images: float32 [n, c, h, w] in [0, 1]; fewer than four are not divided.
    """
    if len(images) < _LEAST_IMAGES:
        return False
    trial = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]), _calls(network) as calls:
        state = torch.get_rng_state()
        # The first pass may fill caches, which the next ones only read.
        is_same = _halves_agree(trial, images)
        # Kept, so that no new object has the identity of an old one.
        values, before = _values(network, trial), [*map(_noted, _values(network, trial))]
        is_same = is_same and _halves_agree(trial, images)
        draws = not torch.equal(state, torch.get_rng_state())
        stores = [*map(_noted, _values(network, trial))] != before
        del values
    return is_same and not draws and not stores and not calls


def _halves_agree(network: nn.Module, images: Tensor) -> bool:
    """Return whether a pass on a batch and passes on its halves, which may fill caches, have the same outputs."""
    try:
        whole, parts = network(images), [network(part) for part in images.chunk(2)]
        return torch.allclose(whole, torch.cat(parts), rtol=_ROUNDING, atol=_ROUNDING)
    except Exception:  # of any network that keeps something of the pass before, or takes one size of batch
        return False


@contextmanager
def _calls(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Collect the modules of a network that are called within the block."""
    found: list[nn.Module] = []
    with ExitStack() as stack:
        for module in network.modules():
            handle = module.register_forward_pre_hook(lambda called, _: found.append(called))
            stack.callback(handle.remove)
        yield found


def _values(*networks: nn.Module) -> list[dict[str, Any]]:
    """Return the attributes of all modules, parameters and buffers among them."""
    return [dict(vars(module)) for network in networks for module in network.modules()]


def _noted(value: Any) -> Any:
    """Return what differs after a value was replaced or changed: its identity, contents or version."""
    if isinstance(value, Tensor):
        # Tensors of the inference mode have no version, and nothing outside of that mode can change them.
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, Mapping):
        return {key: _noted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [*map(_noted, value)]
    return value if isinstance(value, (str, int, float, type(None))) else id(value)


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
