"""The number of images that pass through a network at once, from a measurement of a few images.

Splitting a batch changes results by rounding only, since these networks do not let images influence each other. A
batch that fits is never split: on a machine with enough memory the bits are those of one pass.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.common.memory import GIB, memory_at_hand
from dfkd_core.common.pixels import grey_images
from dfkd_core.errors import DfkdError
from dfkd_core.models.classifier import Classifier

__all__ = [
    "LABELLING_SHARE",
    "NEVER_SPLIT_BELOW",
    "PROBED_SIZES",
    "WHOLE_SHARE",
    "PassCost",
    "PassSizes",
    "gibibytes",
    "joined",
    "measure_cost",
    "peak_bytes",
]

WHOLE_SHARE = 3 / 4
"""A batch with gradients is split if it needs more than this share of the available memory."""
PART_SHARE = 1 / 2
"""Share that a part of it may need: the rest holds the batch's images and the allocator's overhead."""
LABELLING_SHARE = 1 / 4
"""Share that a pass without gradients may need, since other work may run at the same time."""
PROBED_SIZES = (2, 3)
"""Batch sizes that are measured; a single image has a memory layout of its own."""
NEVER_SPLIT_BELOW = GIB // 4
"""Bytes that a pass may take even if less memory is available."""
# Images, their gradients, Adam's moments and the buffers of a smoothed step, in floats of the image's size.
_DESCENT_COPIES = 12


@dataclass(frozen=True, slots=True)
class PassCost:
    """Memory of a pass in bytes, as a linear function of the number of images."""

    fixed: int
    """Part that does not depend on the images."""
    per_image: int
    """Part per image."""

    def of(self, num_images: int) -> int:
        """Return the bytes for `num_images`."""
        return self.fixed + num_images * self.per_image

    def most_images(self, num_bytes: float) -> int:
        """Return the largest power of two of images that fits into `num_bytes`, 0 if not even one fits."""
        count = int(num_bytes - self.fixed) // max(1, self.per_image)
        return 1 << (count.bit_length() - 1) if count > 0 else 0


class PassSizes:
    """Chooses the number of images per pass of one classifier from the available memory."""

    def __init__(self, classifier: Classifier, *, memory: int | None = None) -> None:
        """Prepare to measure `classifier` on its device at that time; nothing runs yet.

        Args:
            classifier: The network; the measuring passes run in its present mode and do not change it.
            memory: Bytes that this process may use for its passes; None for what its device has free at the first use.
        """
        self._classifier = classifier
        self._given = memory
        self._costs: dict[bool, PassCost] = {}

    @cached_property
    def memory(self) -> int:
        """Available bytes."""
        return memory_at_hand(self._device) if self._given is None else self._given

    def cost(self, *, with_gradient: bool) -> PassCost:
        """Return the memory of a forward pass, or of a forward and a backward pass to the images with Adam's state."""
        if with_gradient not in self._costs:
            measured = measure_cost(lambda n: self._run(n, with_gradient), self._device)
            if with_gradient:
                pixels = torch.Size(self._classifier.card.image_shape).numel()
                measured = PassCost(measured.fixed, measured.per_image + 4 * pixels * _DESCENT_COPIES)
            self._costs[with_gradient] = measured
        return self._costs[with_gradient]

    def images_per_pass(self, num_images: int, *, with_gradient: bool) -> int:
        """Return `num_images` if they fit at once, otherwise the largest power of two that fits, at least 1.

        Args:
            num_images: Size of the batch.
            with_gradient: Whether the pass has a backward part, to the images.
        """
        cost = self.cost(with_gradient=with_gradient)
        if cost.of(num_images) <= self._room(WHOLE_SHARE if with_gradient else LABELLING_SHARE):
            return num_images
        fitting = cost.most_images(self._room(PART_SHARE if with_gradient else LABELLING_SHARE))
        return min(num_images, max(1, fitting))

    def split(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a batch [n, c, h, w] in parts for passes without gradients, as one part if it fits."""
        parts = torch.split(images, max(1, self.images_per_pass(len(images), with_gradient=False)))
        return tuple(parts)

    def check_whole(
        self, num_images: int, *, with_gradient: bool, method: str, setting: str, error: type[DfkdError]
    ) -> None:
        """Check that a batch whose images influence each other fits into one pass.

        Args:
            num_images: Size of the batch.
            with_gradient: Whether the pass has a backward part.
            method: Name of the method that needs the whole batch, for the message.
            setting: Setting of the batch size, for the message.
            error: Class of the error.

        Raises:
            DfkdError: Raised as `error`; the message names the largest size that fits.
        """
        cost, room = self.cost(with_gradient=with_gradient), self._room(WHOLE_SHARE)
        if cost.of(num_images) <= room:
            return
        fitting = cost.most_images(room)
        remedy = f"Set {setting}: {fitting}" if fitting > 1 else f"Not even 2 images fit; {setting} cannot help"
        raise error(
            f"{method} needs a whole batch at once, and {num_images} images need about "
            f"{gibibytes(cost.of(num_images))} of the teacher's memory; {gibibytes(room)} of the "
            f"{gibibytes(self.memory)} available may be used. {remedy}, free memory or raise execution.memory_gib"
        )

    def _room(self, share: float) -> float:
        return max(share * self.memory, NEVER_SPLIT_BELOW)

    def _run(self, num_images: int, with_gradient: bool) -> None:
        device = self._device
        images = grey_images(num_images, self._classifier.card.image_shape, device)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient), _precision(device, with_gradient):
            total = self._classifier(images).float().sum()
            if with_gradient:
                torch.autograd.grad(total, images)

    @property
    def _device(self) -> torch.device:
        return self._classifier.mean.device


def _precision(device: torch.device, with_gradient: bool) -> contextlib.AbstractContextManager[object]:
    # As in a descent; labels are computed in full precision.
    return autocast_on_gpu(device) if with_gradient else contextlib.nullcontext()


def measure_cost(work: Callable[[int], object], device: torch.device) -> PassCost:
    """Run `work` on two and on three images and return the line through their peaks."""
    few, more = (peak_bytes(lambda n=n: work(n), device) for n in PROBED_SIZES)  # type: ignore[misc]  # mypy: bound default
    per_image = max(0, (more - few) // (PROBED_SIZES[1] - PROBED_SIZES[0]))
    return PassCost(max(0, few - PROBED_SIZES[0] * per_image), per_image)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Run `work`, with gradients unless it turns them off, and return the peak of its tensors in bytes.

    On a CPU this is a pure function of the work: it counts tensors, not pages, and ignores scratch space inside an
    operator. On a GPU it is the peak that the allocator reports.
    """
    # The first measurement may come from an evaluation, which runs in inference mode.
    with torch.inference_mode(False):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            work()
            peak: int = torch.cuda.max_memory_allocated(device)
            return peak - before
        counting = _Counting()
        with counting:
            work()
        return counting.peak


class _Counting(TorchDispatchMode):
    """Tracks the storages of all tensors that operations return, including those that autograd keeps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[Any, int] = {}
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the first operation imports the compiler, which takes two seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive.setdefault(StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def joined(parts: list[Tensor]) -> Tensor:
    """Return the rows of all parts in one tensor, or the part itself if there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gibibytes(num_bytes: float) -> str:
    """Return bytes for a message, such as `1.50 GiB`."""
    return f"{num_bytes / GIB:.2f} GiB"
