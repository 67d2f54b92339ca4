"""The stored transfer set: a folder of safetensors shards and a manifest that lists them.

    folder/
    ├── manifest.json               inputs of the synthesis and SHA-256 of every shard
    ├── shard-00000.safetensors     images, teacher_logits, soft_targets, image_index
    └── ...

A manifest depends only on the inputs of the synthesis: it has no times and no host names, so the same inputs produce
the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_core.common.digests import canonical_json, write_json
from dfkd_core.common.inner_files import file_fault
from dfkd_core.common.json_files import read_json_object
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set.checks import MOST_FAULTS, refuse, summarise, summary_faults, whole_faults
from dfkd_core.transfer_set.fields import FORMAT_VERSION, field_faults, version_fault
from dfkd_core.transfer_set.shards import REDO, ShardRecord, read_shard, storing

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "read_manifest",
    "verify_transfer_set",
    "write_manifest",
]

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
        TransferSetError: A shard or an argument has a fault, or the manifest cannot be written.

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
    first = read_shard(folder / shards[0].file)
    image_shape, num_classes = _three(first.images.shape[1:]), first.teacher_logits.shape[1]
    refuse(folder, [*whole_faults(folder, shards, image_shape, num_classes, are_hashed=False)])
    summary = summarise(read_shard(folder / record.file) for record in shards)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        method=method,
        method_config=method_config,
        temperature=temperature,
        teacher_digest=teacher_digest,
        statistics_digest=statistics_digest,
        code_version=code_version,
        seed=seed,
        image_shape=image_shape,
        num_classes=num_classes,
        shards=tuple(shards),
        **dataclasses.asdict(summary),
    )
    path = folder / MANIFEST_NAME
    try:
        faults = [*field_faults(json.loads(canonical_json(manifest)))]
    except (TypeError, ValueError) as error:
        faults = [f"it has a value without a JSON form ({error})"]
    if faults:
        raise TransferSetError(f"{path} is not written: {'; '.join(faults)}. Correct the arguments of write_manifest")
    with storing(path):
        write_json(path, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a transfer set; its shards are not opened.

    Raises:
        TransferSetError: The manifest is missing, damaged, of another format, contradicts itself, or names a file
            outside its folder.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.exists() and (fault := file_fault(path, folder)):
            raise TransferSetError(f"{path} {fault}. {REDO}")
        content = read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise TransferSetError(f"No transfer set in {folder}: {MANIFEST_NAME} is missing. {REDO}") from None
    except (OSError, ValueError) as error:
        raise TransferSetError(f"{path} cannot be read: {error}. {REDO}") from error
    version = version_fault(content)
    faults = [version] if version else [*field_faults(content)]
    if faults:
        raise TransferSetError(f"{path} is not a manifest of a transfer set: {'; '.join(faults[:MOST_FAULTS])}. {REDO}")
    return _parse_manifest(content)


def _parse_manifest(content: dict[str, Any]) -> Manifest:
    changed = {
        "shards": tuple(ShardRecord(**record) for record in content["shards"]),
        "image_shape": _three(content["image_shape"]),
        "class_histogram": tuple(content["class_histogram"]),
    }
    return Manifest(**{**content, **changed})


def _three(numbers: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (int(number) for number in numbers)
    return channels, height, width


def verify_transfer_set(folder: Path, teacher_digest: str | None = None) -> Manifest:
    """Check everything that a student relies on in a transfer set, and return its manifest.

    These are the fields of the manifest and, of every shard, its SHA-256, shapes, types, positions and values. Logits
    must be finite, soft targets must be probabilities, and the figures in the manifest must be those of the shards.

    Args:
        folder: The transfer set's folder.
        teacher_digest: Digest of the teacher that the set must belong to; None accepts any.

    Raises:
        TransferSetError: The manifest or a shard has a fault, or the set is of another teacher; names the first faults.

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
    layout = (folder, manifest.shards, manifest.image_shape, manifest.num_classes)
    faults = [*whole_faults(*layout, are_hashed=True)]
    if not faults:
        summary = summarise(read_shard(folder / record.file) for record in manifest.shards)
        faults = [f"{MANIFEST_NAME} {fault}" for fault in summary_faults(summary, manifest)]
    if teacher_digest is not None and manifest.teacher_digest != teacher_digest:
        other = f"{MANIFEST_NAME} is of another teacher: {manifest.teacher_digest}, expected {teacher_digest}"
        faults.insert(0, other)
    refuse(folder, faults)
    return manifest
