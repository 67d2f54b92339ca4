"""A limit on what building a network may create, for descriptions of networks from others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfkd_core.errors import TeacherError

__all__ = ["limited"]

# Initialisation draws and copies some tensors several times, and weights may be stored in a shorter type.
_TIMES_BYTES, _MORE_BYTES = 8, 2**28
_TIMES_STEPS, _MORE_STEPS = 40, 4_000
_BYTES_PER_NUMBER = 4


@contextmanager
def limited(num_bytes: int, num_tensors: int, *, what: str) -> Iterator[None]:
    """Stop a block of this thread that builds a network much larger than its weights.

    Args:
        num_bytes: Bytes of its weights.
        num_tensors: Number of its weights.
        what: The network, for the message.

    Raises:
        TeacherError: The block creates tensors of many times the size, or too many of them.
    """
    with _Limit(_TIMES_BYTES * num_bytes + _MORE_BYTES, _TIMES_STEPS * num_tensors + _MORE_STEPS, what):
        yield


class _Limit(TorchDispatchMode):
    def __init__(self, num_bytes: int, steps: int, what: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes, self._steps, self._what = num_bytes, steps, what

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the first operation imports the compiler, which takes two seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Before the operation: afterwards, the memory may be gone.
        self._spend(0 if _has_tensor(args) else _BYTES_PER_NUMBER * _requested(args), 1)
        result = func(*args, **(kwargs or {}))
        if not _has_tensor(args):
            self._spend(sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), 0)
        return result

    def _spend(self, num_bytes: int, steps: int) -> None:
        self._steps -= steps
        if num_bytes > self._bytes or self._steps < 0:
            raise TeacherError(f"{self._what} is many times as large as its weights. Correct its sizes and arguments")
        self._bytes -= num_bytes if steps == 0 else 0


def _has_tensor(args: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(args))


def _requested(args: Any) -> int:
    """Return how many numbers an operation will create: the product of a shape, or the largest number of a range."""
    shapes = [arg for arg in args if isinstance(arg, list | tuple)]
    numbers = [arg for arg in args if isinstance(arg, int | float) and math.isfinite(arg)]
    return math.prod(map(int, shapes[0])) if shapes else int(max(numbers, default=0))
