"""The distance of an exported form of a student from the student itself.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_core.common.pixels import load_batch
from dfkd_core.common.rows import Rows
from dfkd_core.errors import ExportError

__all__ = ["TOLERANCE", "Fidelity", "Predict", "check_fidelity", "measure_fidelity", "predict_all"]

Predict = Callable[[Tensor], Tensor]
"""Maps a form's input, float32 [n, c, h, w], to logits [n, k]; any n."""

TOLERANCE = 1e-4
"""Largest relative difference from the student in float32: sums in another order differ by about 1e-6, another
network by more than 1e-2."""

# The first three check whether the batch size is really free.
_FIRST_BATCHES = (1, 2, 7)
_BATCH_SIZE = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Distance of a form from its student on the same images."""

    max_difference: float
    """Largest absolute difference of two logits."""
    relative_difference: float
    """The same, divided by the student's largest absolute logit."""
    agreement: float
    """Share of images with the same most likely class."""


@torch.no_grad()
def predict_all(predict: Predict, images: Rows, *, prepare: Predict | None = None, name: str = "The student") -> Tensor:
    """Compute logits [n, k] in batches of 1, 2, 7 and then 62 images.

    Args:
        predict: A form of a student, on the CPU.
        images: uint8 [n, c, h, w].
        prepare: Converts images in [0, 1] to the form's input; None if the form takes them unchanged.
        name: Name of the form, for the message.

    Raises:
        ExportError: The form fails with one of the batches, or does not return one row for each image.
    """
    parts = []
    for positions in _batches(len(images)):
        # In the layout of the form's users, channel by channel.
        batch = load_batch(images, positions).clone(memory_format=torch.contiguous_format)
        try:
            logits = predict(prepare(batch) if prepare else batch)
        except Exception as error:  # each runtime has its own error classes
            raise ExportError(f"{name} fails with a batch of {len(batch)} images: {error}") from error
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ExportError(f"{name} returns the shape {tuple(logits.shape)} for {len(batch)} images, not [n, k]")
        parts.append(logits)
    return torch.cat(parts)


def measure_fidelity(logits: Tensor, student_logits: Tensor) -> Fidelity:
    """Compare a form's logits [n, k] with the student's [n, k] on the same images.

    Raises:
        ExportError: They differ in shape, or one is NaN or infinite.
    """
    if logits.shape != student_logits.shape:
        shapes = f"{tuple(logits.shape)}, the student's {tuple(student_logits.shape)}"
        raise ExportError(f"The form's logits have the shape {shapes}")
    difference = (logits.double() - student_logits.double()).abs().max().item()
    if not math.isfinite(difference):
        raise ExportError("The form's or the student's logits hold NaN or Inf")
    # The smallest positive number avoids a division by 0 for an output that is zero everywhere.
    scale = max(student_logits.double().abs().max().item(), sys.float_info.min)
    return Fidelity(
        max_difference=difference,
        relative_difference=difference / scale,
        agreement=(logits.argmax(1) == student_logits.argmax(1)).double().mean().item(),
    )


def check_fidelity(
    fidelity: Fidelity, *, name: str, max_relative_difference: float | None = None, min_agreement: float | None = None
) -> None:
    """Refuse a form that is too far from its student.

    Args:
        fidelity: The measured distances.
        name: Name of the form, for the message.
        max_relative_difference: Largest `relative_difference` allowed, None for any. With a bound r, classes can differ
            only for images whose two largest logits are closer than 2 r times the largest absolute logit.
        min_agreement: Smallest agreement allowed, None for any.

    Raises:
        ExportError: A bound is exceeded.
    """
    found, bound = fidelity.relative_difference, max_relative_difference
    if bound is not None and found > bound:
        raise ExportError(
            f"{name} is not equivalent to the student: its logits differ by up to {fidelity.max_difference:.3g}, "
            f"{found:.2g} of the largest, and {bound:.2g} is allowed; top-1 agreement {fidelity.agreement:.2%}. It was "
            "not kept"
        )
    if min_agreement is not None and fidelity.agreement < min_agreement:
        raise ExportError(
            f"{name} predicts the student's class for {fidelity.agreement:.2%} of the images, and at least "
            f"{min_agreement:.2%} is required. It was not kept. In float32 the network is equivalent, so the rounding "
            "is too coarse: calibrate on other images (--transfer-set) or allow less (--min-agreement)"
        )


def _batches(num_images: int) -> Iterator[Tensor]:
    first = 0
    sizes = iter(_FIRST_BATCHES)
    while first < num_images:
        last = min(first + next(sizes, _BATCH_SIZE), num_images)
        yield torch.arange(first, last)
        first = last
