"""The checks of a stored transfer set, which a reader and `verify_transfer_set` share.

Each returns a fault as a phrase that begins with a verb and follows the name of the file.

n images, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfkd_core.common.digests import file_sha256
from dfkd_core.common.inner_files import file_fault
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set.shards import REDO, Shard, ShardRecord, read_form, read_shard

if TYPE_CHECKING:
    from dfkd_core.transfer_set.manifest import Manifest

__all__ = [
    "MOST_FAULTS",
    "Summary",
    "digest_faults",
    "index_fault",
    "layout_faults",
    "logits_fault",
    "refuse",
    "summarise",
    "summary_faults",
    "targets_fault",
    "whole_faults",
]

MOST_FAULTS = 5
"""Faults of a set that a message lists."""

# Sums of probabilities in float32, and the same figure computed by another processor.
_TOLERANCE = 1e-3
_SAME_FIGURE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures of a whole set; the fields are those of `Manifest`."""

    num_images: int
    class_histogram: tuple[int, ...]
    mean_confidence: float
    target_agreement: float


def refuse(folder: Path, faults: Sequence[str]) -> None:
    """Raise a `TransferSetError` with the first faults of a set, each of which names its file, if there are any."""
    if faults:
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise TransferSetError(f"Transfer set {folder}: {'; '.join(faults[:MOST_FAULTS])}{more}. {REDO}")


def layout_faults(
    folder: Path, shards: Sequence[ShardRecord], image_shape: tuple[int, int, int], num_classes: int
) -> Iterator[str]:
    """Yield the faults in the headers of shard files; the tensors are not read.

    Args:
        folder: Folder of the set.
        shards: Entries of the shards.
        image_shape: Channels, height and width that the images must have.
        num_classes: Classes k that the logits must have.
    """
    for record in shards:
        fault = _layout_fault(folder, record, image_shape, num_classes)
        if fault:
            yield f"{record.file} {fault}"


def _layout_fault(folder: Path, record: ShardRecord, image_shape: tuple[int, int, int], num_classes: int) -> str | None:
    form = read_form(folder / record.file)
    if isinstance(form, str):
        return form
    num_images, *shape = form["images"][1]
    if num_images != record.num_images:
        return f"holds {num_images} images, the manifest has {record.num_images}"
    if tuple(shape) != image_shape:
        return f"holds images of shape {shape}, the manifest has {list(image_shape)}"
    classes = form["teacher_logits"][1][1]
    return None if classes == num_classes else f"holds logits of {classes} classes, the manifest has {num_classes}"


def whole_faults(
    folder: Path,
    shards: Sequence[ShardRecord],
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    are_hashed: bool,
) -> Iterator[str]:
    """Yield the faults of shard files that are read as a whole, at most one per file.

    Arguments as in `layout_faults`; `are_hashed` compares the bytes with the digests in the entries.
    """
    first = 0
    for record in shards:
        fault = _layout_fault(folder, record, image_shape, num_classes)
        if not fault and are_hashed:
            fault = _digest_fault(folder, record)
        if not fault:
            fault = _content_fault(read_shard(folder / record.file), first)
        if fault:
            yield f"{record.file} {fault}"
        first += record.num_images


def digest_faults(folder: Path, shards: Iterable[ShardRecord]) -> Iterator[str]:
    """Yield the shard files that are missing or whose bytes are not those in the entries; nothing else is checked."""
    for record in shards:
        fault = file_fault(folder / record.file, folder) or _digest_fault(folder, record)
        if fault:
            yield f"{record.file} {fault}"


def _digest_fault(folder: Path, record: ShardRecord) -> str | None:
    try:
        found = file_sha256(folder / record.file)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == record.sha256 else f"has changed (sha256 {found}, the manifest has {record.sha256})"


def _content_fault(shard: Shard, first: int) -> str | None:
    return (
        index_fault(shard.image_index, first) or logits_fault(shard.teacher_logits) or targets_fault(shard.soft_targets)
    )


def index_fault(image_index: Tensor, first: int) -> str | None:
    """Return a fault if the positions int64 [n] do not count up from `first`."""
    last = first + len(image_index) - 1
    if torch.equal(image_index, torch.arange(first, last + 1)):
        return None
    return f"holds other images than those at positions {first} to {last} of the set (image_index)"


def logits_fault(teacher_logits: Tensor) -> str | None:
    """Return a fault if logits [n, k] are not finite."""
    return None if teacher_logits.isfinite().all() else "has NaN or Inf in teacher_logits"


def targets_fault(soft_targets: Tensor) -> str | None:
    """Return a fault if the rows [n, k] are not distributions."""
    if not soft_targets.isfinite().all():
        return "has NaN or Inf in soft_targets"
    off = (soft_targets.double().sum(1) - 1).abs()
    if bool((soft_targets < 0).any()) or bool((off > _TOLERANCE).any()):
        return "has soft_targets that are not probabilities with the sum 1"
    return None


def summarise(shards: Iterable[Shard]) -> Summary:
    """Compute the figures of a set from its shards, of which there is at least one, in their order."""
    confidences, histograms, reached = [], [], []
    for shard in shards:
        confidences.append(shard.teacher_logits.double().softmax(1).amax(1))
        classes = shard.teacher_logits.argmax(1)
        histograms.append(torch.bincount(classes, minlength=shard.teacher_logits.shape[1]))
        reached.append(classes == shard.soft_targets.argmax(1))
    confidence = torch.cat(confidences)
    return Summary(
        num_images=len(confidence),
        class_histogram=tuple(torch.stack(histograms).sum(0).tolist()),
        mean_confidence=confidence.mean().item(),
        target_agreement=torch.cat(reached).double().mean().item(),
    )


def summary_faults(found: Summary, manifest: Manifest) -> list[str]:
    """Return the figures of a manifest that are not those of its shards."""
    faults = []
    if found.class_histogram != manifest.class_histogram:
        faults.append("has a class_histogram that is not that of the shards")
    for name in ("mean_confidence", "target_agreement"):
        computed, stated = getattr(found, name), getattr(manifest, name)
        if not math.isclose(computed, stated, abs_tol=_SAME_FIGURE):
            faults.append(f"has the {name} {stated:.6f}, the shards have {computed:.6f}")
    return faults
