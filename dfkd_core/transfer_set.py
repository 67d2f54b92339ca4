"""The stored transfer set: a folder of safetensors shards and a manifest that names every one of them.

    folder/
    ├── manifest.json               what made the set, and the sha256 of every shard
    ├── shard-00000.safetensors     images, teacher_logits, soft_targets, image_index
    └── ...

A manifest is a pure function of the inputs of the synthesis: it holds no times and no host names, so
the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from dfkd_core.digests import file_sha256, write_atomically, write_json
from dfkd_core.errors import TransferSetError
from dfkd_core.rows import ShardedRows

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "Manifest",
    "Shard",
    "ShardRecord",
    "TransferSet",
    "quantise",
    "read_manifest",
    "read_shard",
    "shard_name",
    "verify_transfer_set",
    "write_manifest",
    "write_shard",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors")
_REDO = "Make it again: dfkd stage synthesize"


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Turn images in [0, 1] into uint8 of the same shape, to the nearest of 256 grey levels."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The images of one shard file and what the teacher says of them; n images, k classes."""

    images: torch.Tensor
    """uint8 [n, c, h, w]."""
    teacher_logits: torch.Tensor
    """float32 [n, k], the teacher's output on the stored (quantised) images."""
    soft_targets: torch.Tensor
    """float32 [n, k], the distribution that each image was made for; rows sum to 1."""
    image_index: torch.Tensor
    """int64 [n], position of each image in the whole set."""

    def __post_init__(self) -> None:
        n = len(self.images)
        assert self.images.dtype == torch.uint8, f"images are {self.images.dtype}, not uint8"
        assert self.images.ndim == 4, f"images have shape {tuple(self.images.shape)}, not [n, c, h, w]"
        assert self.teacher_logits.shape == self.soft_targets.shape, "logits and soft targets differ in shape"
        assert len(self.teacher_logits) == len(self.image_index) == n, "tensors of one shard differ in length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """How a manifest names a shard."""

    file: str
    sha256: str
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made a transfer set and what it consists of."""

    format_version: int
    method: str
    """Name of the synthesis method."""
    method_config: Mapping[str, Any]
    """The whole configuration of the method, as plain nested mappings."""
    temperature: float
    """Temperature of the soft targets."""
    teacher_digest: str
    statistics_digest: str | None
    """Digest of the feature statistics, None where the method uses none."""
    code_version: str
    seed: int
    num_images: int
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    num_classes: int
    class_histogram: tuple[int, ...]
    """Number of images per class that the teacher predicts."""
    mean_confidence: float
    """Mean over images of the teacher's largest probability at temperature 1."""
    shards: tuple[ShardRecord, ...]


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TransferSetError(
            f"Cannot write {path}: {error}. The folder must be writable and the disk must have room. "
            f"Finished shards are kept; free space or change the output folder and run the same command again."
        ) from error


def shard_name(shard_index: int) -> str:
    """Return the file name of the shard at `shard_index`."""
    return f"shard-{shard_index:05d}.safetensors"


def write_shard(path: Path, shard: Shard) -> ShardRecord:
    """Write a shard atomically: `path` holds the whole shard or nothing new.

    Raises:
        TransferSetError: The disk is full or the folder cannot be written.
    """
    tensors = {field.name: getattr(shard, field.name).contiguous().cpu() for field in fields(shard)}
    with _storing(path), write_atomically(path) as temporary:
        save_file(tensors, temporary)
    return ShardRecord(file=path.name, sha256=file_sha256(path), num_images=len(shard.images))


def read_shard(path: Path) -> Shard:
    """Read a shard; its tensors are memory-mapped until they are touched.

    Raises:
        TransferSetError: The file is missing, truncated or lacks a tensor.
    """
    if not path.is_file():
        raise TransferSetError(f"Shard {path} is missing. {_REDO}")
    try:
        tensors = load_file(path)
        return Shard(**{field.name: tensors[field.name] for field in fields(Shard)})
    except (SafetensorError, OSError, AssertionError) as error:
        raise TransferSetError(f"Shard {path} is truncated or not a shard: {error}. {_REDO}") from error
    except KeyError as error:
        raise TransferSetError(f"Shard {path} lacks the tensor {error}. {_REDO}") from error


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
    """Write `manifest.json` for the shards that lie in `folder` and return what it says.

    The class histogram and the confidence are computed from the shards, so that reused shards count like new ones.

    Raises:
        TransferSetError: A shard cannot be read, or the manifest cannot be written.
    """
    if not shards:
        raise TransferSetError(f"No shards for {folder}: a transfer set has at least one. {_REDO}")
    confidences, histograms = [], []
    for record in shards:
        stored = read_shard(folder / record.file)
        num_classes = stored.teacher_logits.shape[1]
        confidences.append(stored.teacher_logits.double().softmax(1).amax(1))
        histograms.append(torch.bincount(stored.teacher_logits.argmax(1), minlength=num_classes))
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
        shards=tuple(shards),
    )
    path = folder / MANIFEST_NAME
    with _storing(path):
        write_json(path, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a transfer set.

    Raises:
        TransferSetError: It is missing, damaged, of another format, or names a file outside of its folder.
    """
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TransferSetError(f"No transfer set in {folder}: {MANIFEST_NAME} is missing. {_REDO}") from None
    except (OSError, ValueError) as error:
        raise TransferSetError(f"{path} cannot be read: {error}. {_REDO}") from error
    try:
        return _parse_manifest(content)
    except (KeyError, TypeError, ValueError) as error:
        raise TransferSetError(f"{path} is not a manifest of a transfer set: {error}. {_REDO}") from error


def _parse_manifest(content: Any) -> Manifest:
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {content['format_version']!r}, this program reads {FORMAT_VERSION}")
    shards = tuple(ShardRecord(**record) for record in content["shards"])
    for record in shards:
        if not _SHARD_NAME.fullmatch(record.file):
            raise ValueError(f"shard name {record.file!r}, allowed are names like {shard_name(0)!r} in its own folder")
    if sum(record.num_images for record in shards) != content["num_images"]:
        raise ValueError(f"num_images is {content['num_images']}, its shards hold another number")
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
    """Re-hash every shard of a transfer set.

    Args:
        folder: The transfer set's folder.
        teacher_digest: Digest of the teacher that the set must belong to; None accepts any.

    Raises:
        TransferSetError: Naming every shard that is missing, truncated or changed, or the other teacher.
    """
    manifest = read_manifest(folder)
    faults = [fault for record in manifest.shards if (fault := _shard_fault(folder, record))]
    if teacher_digest is not None and manifest.teacher_digest != teacher_digest:
        faults.append(f"{MANIFEST_NAME} is of another teacher: {manifest.teacher_digest}, expected {teacher_digest}")
    if faults:
        raise TransferSetError(f"Transfer set {folder}: {'; '.join(faults)}. {_REDO}")
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
    return f"{record.file} has changed (sha256 {found}, the manifest says {record.sha256})"


class TransferSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Reads a transfer set; shards are memory-mapped at the first use, so that it may be larger than the memory.

    >>> images, logits = TransferSet(folder)[0]  # float32 [c, h, w] in [0, 1] and float32 [k]

    Opening does not hash the shards: `verify_transfer_set` does.

    Raises:
        TransferSetError: The manifest cannot be read or a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        missing = [record.file for record in self.manifest.shards if not (folder / record.file).is_file()]
        if missing:
            raise TransferSetError(f"Transfer set {folder}: {', '.join(missing)} is missing. {_REDO}")

    @cached_property
    def _shards(self) -> list[Shard]:
        shards = [read_shard(self.folder / record.file) for record in self.manifest.shards]
        for record, shard in zip(self.manifest.shards, shards):
            if len(shard.images) != record.num_images:
                raise TransferSetError(
                    f"{self.folder / record.file} holds {len(shard.images)} images, "
                    f"the manifest says {record.num_images}. {_REDO}"
                )
        return shards

    @cached_property
    def images(self) -> ShardedRows:
        """All images, uint8 [n, c, h, w], read where they are indexed."""
        return ShardedRows([shard.images for shard in self._shards])

    @cached_property
    def teacher_logits(self) -> ShardedRows:
        """The teacher's output on all images, float32 [n, k]."""
        return ShardedRows([shard.teacher_logits for shard in self._shards])

    @cached_property
    def soft_targets(self) -> ShardedRows:
        """The distributions that the images were made for, float32 [n, k]."""
        return ShardedRows([shard.soft_targets for shard in self._shards])

    def __len__(self) -> int:
        return self.manifest.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index].float() / 255, self.teacher_logits[index]
