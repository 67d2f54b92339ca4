"""The stored transfer set: a folder of safetensors shards and a manifest that lists them.

    folder/
    ├── manifest.json               inputs of the synthesis and SHA-256 of every shard
    ├── shard-00000.safetensors     images, teacher_logits, soft_targets, image_index
    └── ...

A manifest depends only on the inputs of the synthesis: it has no times and no host names, so the same inputs produce
the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfkd_core.common.archives import read_regular
from dfkd_core.common.digests import file_sha256, write_json
from dfkd_core.common.strict_json import parse_json
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set.shards import REDO, SHARD_NAME, ShardRecord, read_shard, shard_name, storing

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "Manifest",
    "read_manifest",
    "verify_transfer_set",
    "write_manifest",
]

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The inputs and the contents of a transfer set."""

    format_version: int
    method: str
    """Name of the synthesis method."""
    method_config: Mapping[str, Any]
    """The whole configuration of the method, as plain nested mappings."""
    temperature: float
    """Temperature of the soft targets."""
    teacher_digest: str
    statistics_digest: str | None
    """Digest of the feature statistics; None if the method uses none."""
    code_version: str
    seed: int
    num_images: int
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    num_classes: int
    class_histogram: tuple[int, ...]
    """Number of images for which the teacher predicts each class."""
    mean_confidence: float
    """Mean over images of the teacher's largest probability at temperature 1."""
    target_agreement: float
    """Share of the images for which the teacher predicts the most likely class of their soft target."""
    shards: tuple[ShardRecord, ...]


def write_manifest(
    folder: Path,
    *,
    method: str,
    method_config: Mapping[str, Any],
    temperature: float,
    teacher_digest: str,
    statistics_digest: str | None,
    code_version: str,
    seed: int,
    shards: Sequence[ShardRecord],
) -> Manifest:
    """Write `manifest.json` for the shards in `folder` and return the manifest.

    The class histogram, the confidence and the agreement with the soft targets are computed from the stored shards, so
    reused shards count like new ones.

    Raises:
        TransferSetError: A shard cannot be read, or the manifest cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dfkd_core import write_manifest, write_shard
        >>> from dfkd_core.transfer_set.shards import Shard
        >>> pixels, logits = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.eye(3)
        >>> shard = Shard(
        ...     images=pixels, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(3)
        ... )
        >>> inputs = {"method": "noise", "method_config": {}, "temperature": 1.0, "seed": 0, "code_version": ""}
        >>> digests = {"teacher_digest": "a1", "statistics_digest": None}
        >>> with TemporaryDirectory() as name:
        ...     records = [write_shard(Path(name) / "shard-00000.safetensors", shard)]
        ...     manifest = write_manifest(Path(name), shards=records, **inputs, **digests)
        >>> manifest.num_images, manifest.class_histogram, manifest.target_agreement
        (3, (1, 1, 1), 1.0)
    """
    if not shards:
        raise TransferSetError(f"No shards for {folder}: a transfer set needs at least one. {REDO}")
    confidences, histograms, reached = [], [], []
    for record in shards:
        stored = read_shard(folder / record.file)
        num_classes = stored.teacher_logits.shape[1]
        confidences.append(stored.teacher_logits.double().softmax(1).amax(1))
        classes = stored.teacher_logits.argmax(1)
        histograms.append(torch.bincount(classes, minlength=num_classes))
        reached.append(classes == stored.soft_targets.argmax(1))
    confidence = torch.cat(confidences)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        method=method,
        method_config=method_config,
        temperature=temperature,
        teacher_digest=teacher_digest,
        statistics_digest=statistics_digest,
        code_version=code_version,
        seed=seed,
        num_images=len(confidence),
        image_shape=_three(stored.images.shape[1:]),
        num_classes=num_classes,
        class_histogram=tuple(torch.stack(histograms).sum(0).tolist()),
        mean_confidence=confidence.mean().item(),
        target_agreement=torch.cat(reached).double().mean().item(),
        shards=tuple(shards),
    )
    path = folder / MANIFEST_NAME
    with storing(path):
        write_json(path, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a transfer set.

    Raises:
        TransferSetError: The manifest is missing, damaged, of another format, or names a file outside its folder.
    """
    path = folder / MANIFEST_NAME
    try:
        content = parse_json(read_regular(path))
    except FileNotFoundError:
        raise TransferSetError(f"No transfer set in {folder}: {MANIFEST_NAME} is missing. {REDO}") from None
    except (OSError, ValueError) as error:
        raise TransferSetError(f"{path} cannot be read: {error}. {REDO}") from error
    try:
        return _parse_manifest(content)
    except (KeyError, TypeError, ValueError) as error:
        raise TransferSetError(f"{path} is not a manifest of a transfer set: {error}. {REDO}") from error


def _parse_manifest(content: Any) -> Manifest:
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {content['format_version']!r}, this program reads {FORMAT_VERSION}")
    shards = tuple(ShardRecord(**record) for record in content["shards"])
    for record in shards:
        if not SHARD_NAME.fullmatch(record.file):
            raise ValueError(f"its shard name {record.file!r} must be like {shard_name(0)!r}, in its own folder")
    if sum(record.num_images for record in shards) != content["num_images"]:
        raise ValueError(f"its num_images is {content['num_images']}, but its shards hold another number")
    changed = {
        "shards": shards,
        "image_shape": _three(content["image_shape"]),
        "class_histogram": tuple(content["class_histogram"]),
    }
    return Manifest(**{**content, **changed})


def _three(numbers: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (int(number) for number in numbers)
    return channels, height, width


def verify_transfer_set(folder: Path, teacher_digest: str | None = None) -> Manifest:
    """Check the SHA-256 of every shard of a transfer set and return its manifest.

    Args:
        folder: The transfer set's folder.
        teacher_digest: Digest of the teacher that the set must belong to; None accepts any.

    Raises:
        TransferSetError: A shard is missing, truncated or changed, or the set is of another teacher; names each fault.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dfkd_core import verify_transfer_set, write_manifest, write_shard
        >>> from dfkd_core.transfer_set.shards import Shard
        >>> pixels, logits = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.eye(3)
        >>> shard = Shard(
        ...     images=pixels, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(3)
        ... )
        >>> inputs = {"method": "noise", "method_config": {}, "temperature": 1.0, "seed": 0, "code_version": ""}
        >>> digests = {"teacher_digest": "a1", "statistics_digest": None}
        >>> with TemporaryDirectory() as name:
        ...     records = [write_shard(Path(name) / "shard-00000.safetensors", shard)]
        ...     _ = write_manifest(Path(name), shards=records, **inputs, **digests)
        ...     manifest = verify_transfer_set(Path(name), teacher_digest="a1")
        >>> manifest.image_shape, manifest.num_classes
        ((1, 8, 8), 3)
    """
    manifest = read_manifest(folder)
    faults = [fault for record in manifest.shards if (fault := _shard_fault(folder, record))]
    if teacher_digest is not None and manifest.teacher_digest != teacher_digest:
        faults.append(f"{MANIFEST_NAME} is of another teacher: {manifest.teacher_digest}, expected {teacher_digest}")
    if faults:
        raise TransferSetError(f"Transfer set {folder}: {'; '.join(faults)}. {REDO}")
    return manifest


def _shard_fault(folder: Path, record: ShardRecord) -> str | None:
    path = folder / record.file
    if not path.is_file():
        return f"{record.file} is missing"
    try:
        found = file_sha256(path)
    except OSError as error:
        return f"{record.file} cannot be read ({error})"
    if found == record.sha256:
        return None
    try:
        read_shard(path)
    except TransferSetError:
        return f"{record.file} is truncated or not a shard"
    return f"{record.file} has changed (sha256 {found}, the manifest has {record.sha256})"
