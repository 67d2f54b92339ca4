"""CUDA graphs: repeated GPU work that is recorded once and then replayed.

A step of a small network consists of dozens of kernels of a few microseconds, and launching one from Python takes
longer than running it. After one recording, all of them are launched at once.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import torch

__all__ = ["recorded_on_gpu"]

# One recording at a time: it redirects the allocator, which all threads of a process share.
_RECORDING = threading.Lock()


def recorded_on_gpu(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a function that repeats `work`: a recording of it on a GPU, `work` itself on other devices.

    On a GPU, the first call runs `work`, the second records and replays it, and further calls replay it. Work that
    cannot be recorded is run on each call: if it waits for the GPU, reads a computed value, or draws numbers from a
    generator of Python, NumPy or the CPU, as layers do that are skipped at random.

    Args:
        work: Reads and writes the same tensors on each call. Anything else that changes between calls, such as a
            counter, is fixed at its value in the second call.
        device: Where to compute.
    """
    return _Recorded(work, device) if device.type == "cuda" else work


class _Recorded:
    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._work, self._device = work, device
        self._next = self._first
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stubs lack it

    def __call__(self) -> None:
        with torch.cuda.device(self._device):
            self._next()

    def _first(self) -> None:
        # On the stream of the recording, so that libraries set up their state for this stream before it.
        self._stream.wait_stream(torch.cuda.current_stream())
        before = _drawn_on_the_cpu()
        with torch.cuda.stream(self._stream):
            self._work()
        torch.cuda.current_stream().wait_stream(self._stream)
        # A recording would repeat the drawn numbers.
        self._next = self._second if _drawn_on_the_cpu() == before else self._work

    def _second(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with _RECORDING, torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._work()
        except RuntimeError:
            # A forward pass may do things that cannot be recorded. Nothing of the failed recording has run.
            self._next = self._work
        else:
            self._next = graph.replay
        self._next()


def _drawn_on_the_cpu() -> tuple[object, ...]:
    """Return the states of the global generators, equal if nothing was drawn from them."""
    return random.getstate(), str(np.random.get_state()), bytes(torch.get_rng_state().numpy())
