"""The facts about a transfer set that people look at: counts, samples, the nearest pairs, and features on two axes.

n images of the set, m samples, p pairs, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_core.common.bins import bin_indices
from dfkd_core.common.rows import Rows
from dfkd_core.common.shown_images import shrunk, spread_positions
from dfkd_core.common.tensor_files import read_results, write_tensors
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set.neighbours import nearest_pairs
from dfkd_core.transfer_set.reader import TransferSet

__all__ = ["SetSummary", "read_summary", "summarise_set", "write_summary"]

_NUM_BINS = 20
_MOST_SAMPLES = 24
_MOST_PAIRS = 6
_MOST_COMPARED = 5_000
_COMPARED_PX = 32
_ROWS_AT_ONCE = 5_000

_FORMS = {
    "class_counts": "int64 k",
    "target_counts": "int64 k",
    "confidence_counts": f"int64 {_NUM_BINS}",
    "sample_images": "uint8 m c h w",
    "sample_index": "int64 m",
    "sample_targets": "float32 m k",
    "sample_logits": "float32 m k",
    "sample_is_refined": "bool m",
    "pair_images": "uint8 p 2 c h w",
    "pair_index": "int64 p 2",
    "pair_distance": "float32 p",
    "num_duplicates": "int64",
    "num_compared": "int64",
    "drawn_axes": "float32 drawn 2",
    "image_axes": "float32 shown 2",
}
_NUMBERS = ("num_duplicates", "num_compared")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetSummary:
    """Facts about a transfer set; its images have at most 64 pixels per side."""

    class_counts: Tensor
    """Images per class that the teacher gives, int64 [k]."""
    target_counts: Tensor
    """Images per most likely class of the soft target, int64 [k]."""
    confidence_counts: Tensor
    """Images per bin of the teacher's largest probability, int64 [20]; the bins have equal widths in [0, 1]."""
    sample_images: Tensor
    """Images spread over the set, uint8 [m, c, h, w], m = min(n, 24)."""
    sample_index: Tensor
    """Their positions in the set, int64 [m]."""
    sample_targets: Tensor
    """Their soft targets, float32 [m, k]."""
    sample_logits: Tensor
    """The teacher's logits on them, float32 [m, k]."""
    sample_is_refined: Tensor
    """Whether they were changed by gradient steps, bool [m]; the others are as drawn."""
    pair_images: Tensor
    """The most similar images, uint8 [p, 2, c, h, w], p at most 6, the most similar pair first."""
    pair_index: Tensor
    """Their positions in the set, int64 [p, 2]."""
    pair_distance: Tensor
    """Root mean square difference of their pixels in [0, 1], float32 [p]; of images of at most 32 pixels per side."""
    num_duplicates: int
    """Pairs of the compared images that are closer than 0.01."""
    num_compared: int
    """Images that were compared, min(n, 5000), spread over the set."""
    drawn_axes: Tensor
    """Features drawn from their model, on its first two principal axes, float32 [500, 2]; [0, 2] without a model."""
    image_axes: Tensor
    """Features of images spread over the set, on the same axes, float32 [min(n, 500), 2]; [0, 2] without a model."""


def summarise_set(
    transfer_set: TransferSet, *, is_refined: Callable[[Sequence[int]], Tensor], drawn_axes: Tensor, image_axes: Tensor
) -> SetSummary:
    """Return the facts about a stored set.

    Args:
        transfer_set: The set.
        is_refined: Returns whether the images at these positions were changed by gradient steps, bool [m].
        drawn_axes: See `SetSummary`.
        image_axes: See `SetSummary`.

    Raises:
        TransferSetError: A shard has a fault.
    """
    images = transfer_set.images
    samples = spread_positions(len(transfer_set), _MOST_SAMPLES)
    return SetSummary(
        **_counts(transfer_set),
        sample_images=shrunk(images[samples]),
        sample_index=samples,
        sample_targets=transfer_set.soft_targets[samples],
        sample_logits=transfer_set.teacher_logits[samples],
        sample_is_refined=is_refined(samples.tolist()),
        **_nearest(images),
        drawn_axes=drawn_axes,
        image_axes=image_axes,
    )


def _counts(transfer_set: TransferSet) -> dict[str, Any]:
    num_classes = transfer_set.manifest.num_classes
    classes, targets, bins = (torch.zeros(size, dtype=torch.int64) for size in (num_classes, num_classes, _NUM_BINS))
    for first in range(0, len(transfer_set), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        confidence, answers = transfer_set.teacher_logits[rows].double().softmax(1).max(1)
        classes += answers.bincount(minlength=num_classes)
        targets += transfer_set.soft_targets[rows].argmax(1).bincount(minlength=num_classes)
        bins += bin_indices(confidence, _NUM_BINS).bincount(minlength=_NUM_BINS)
    return {"class_counts": classes, "target_counts": targets, "confidence_counts": bins}


def _nearest(images: Rows) -> dict[str, Any]:
    compared = spread_positions(len(images), _MOST_COMPARED)
    small = torch.cat([shrunk(images[part], _COMPARED_PX) for part in torch.split(compared, _ROWS_AT_ONCE // 10)])
    found = nearest_pairs(small, _MOST_PAIRS)
    index = compared[found.index]
    pictures = shrunk(images[index.flatten()])
    return {
        "pair_images": pictures.view(len(index), 2, *pictures.shape[1:]),
        "pair_index": index,
        "pair_distance": found.distance,
        "num_duplicates": found.num_duplicates,
        "num_compared": len(compared),
    }


def write_summary(path: Path, summary: SetSummary) -> None:
    """Write a summary as a safetensors file, whole or not at all; equal ones give equal bytes."""
    values = {field.name: getattr(summary, field.name) for field in fields(summary)}
    write_tensors(path, values | {name: torch.tensor(values[name]) for name in _NUMBERS})


def read_summary(path: Path) -> SetSummary:
    """Read the file of `write_summary`.

    Raises:
        TransferSetError: The file is missing or damaged.
    """
    values: dict[str, Any] = read_results(path, _FORMS, missing="There is no summary", error=TransferSetError)
    return SetSummary(**values | {name: int(values[name]) for name in _NUMBERS})
