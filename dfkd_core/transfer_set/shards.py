"""One shard of a transfer set: a safetensors file.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dfkd_core.common.archives import check_safetensors, unchanged
from dfkd_core.common.digests import file_sha256, write_atomically
from dfkd_core.errors import TransferSetError

__all__ = ["REDO", "SHARD_NAME", "Shard", "ShardRecord", "read_shard", "shard_name", "storing", "write_shard"]

SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors")
"""Pattern of the shard names allowed in a manifest: files in its own folder."""

REDO = "Make it again: dfkd stage synthesize"
"""The next command if a stored set is incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The images of one shard file and the teacher's outputs on them; n images, k classes."""

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
    """The entry of a shard in a manifest."""

    file: str
    sha256: str
    num_images: int


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Convert a failure to write `path` into a `TransferSetError` that names the next command."""
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
    """Write a shard atomically and return its entry for the manifest; a failed write leaves `path` unchanged.

    Raises:
        TransferSetError: The disk is full or the folder cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dfkd_core import write_shard
        >>> from dfkd_core.transfer_set.shards import Shard
        >>> pixels, logits = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.eye(3)
        >>> shard = Shard(
        ...     images=pixels, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(3)
        ... )
        >>> with TemporaryDirectory() as name:
        ...     record = write_shard(Path(name) / "shard-00000.safetensors", shard)
        >>> record.file, record.num_images
        ('shard-00000.safetensors', 3)
    """
    tensors = {field.name: getattr(shard, field.name).contiguous().cpu() for field in fields(shard)}
    with storing(path), write_atomically(path) as temporary:
        save_file(tensors, temporary)
    return ShardRecord(file=path.name, sha256=file_sha256(path), num_images=len(shard.images))


def read_shard(path: Path) -> Shard:
    """Read a shard; its tensors are memory-mapped and read on access.

    Raises:
        TransferSetError: The file is missing or truncated, or lacks a tensor.
    """
    if not path.is_file():
        raise TransferSetError(f"Shard {path} is missing. {REDO}")
    try:
        with unchanged(path) as stream:
            check_safetensors(stream)
            tensors = load_file(path)
        return Shard(**{field.name: tensors[field.name] for field in fields(Shard)})
    except (SafetensorError, OSError, ValueError, AssertionError) as error:
        raise TransferSetError(f"Shard {path} is truncated or not a shard: {error}. {REDO}") from error
    except KeyError as error:
        raise TransferSetError(f"Shard {path} lacks the tensor {error}. {REDO}") from error
