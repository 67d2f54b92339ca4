"""Work that a GPU repeats without being told each kernel anew: CUDA graphs.

A step of a small network is dozens of kernels of microseconds each, and launching one from Python takes longer than it
runs. Recorded once, all of them are launched at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

__all__ = ["recorded_on_gpu"]

# One recording at a time: the threads of a process share the allocator that it redirects.
_RECORDING = threading.Lock()


def recorded_on_gpu(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return what does `work` again and again: on a GPU from a recording, elsewhere `work` itself.

    On a GPU the first call runs `work`, the second records and replays it, further ones replay it. Work that cannot be
    recorded, since it waits for the GPU or looks at what it computed, is run each time.

    Args:
        work: Reads and writes the same tensors at each call; whatever else of it changes from call to call, such as a
            number that Python draws, stays as it was at the second call.
        device: Where it computes.
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
        # On the stream of the recording, so that what libraries set up for a stream stands before it.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._work()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._next = self._second

    def _second(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with _RECORDING, torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._work()
        except RuntimeError:
            # A network may do anything in its forward pass, and nothing of what was being recorded has run.
            self._next = self._work
        else:
            self._next = graph.replay
        self._next()
