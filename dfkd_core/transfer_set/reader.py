"""A stored transfer set as rows that are read on access.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch.utils.data import Dataset

from dfkd_core.common.pixels import dequantise
from dfkd_core.common.rows import CheckRows, ShardedRows
from dfkd_core.transfer_set.checks import index_fault, layout_faults, logits_fault, refuse, targets_fault
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_core.transfer_set.shards import Shard, read_shard

__all__ = ["TransferSet"]


class TransferSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Reads a transfer set; shards are memory-mapped on first use, so the set may be larger than the memory.

    Item i is the image float32 [c, h, w] in [0, 1] and the teacher's logits float32 [k]. Opening a set checks its
    manifest and the headers of its shards. Logits and soft targets are checked when they are read, the hashes only by
    `verify_transfer_set`.

    Raises:
        TransferSetError: The manifest or a shard has a fault.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dfkd_core import TransferSet, write_manifest, write_shard
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
        ...     transfer_set = TransferSet(Path(name))
        ...     image, logits = transfer_set[0]
        >>> len(transfer_set), image.shape, image.dtype, logits
        (3, torch.Size([1, 8, 8]), torch.float32, tensor([1., 0., 0.]))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        manifest = self.manifest
        refuse(folder, [*layout_faults(folder, manifest.shards, manifest.image_shape, manifest.num_classes)])

    @cached_property
    def _shards(self) -> list[Shard]:
        shards = [read_shard(self.folder / record.file) for record in self.manifest.shards]
        firsts = itertools.accumulate((len(shard.images) for shard in shards), initial=0)
        faults = (index_fault(shard.image_index, first) for shard, first in zip(shards, firsts))
        refuse(self.folder, [f"{file} {fault}" for file, fault in zip(self._files, faults) if fault])
        return shards

    @property
    def _files(self) -> list[str]:
        return [record.file for record in self.manifest.shards]

    def _checked_by(self, find_fault: Callable[[torch.Tensor], str | None]) -> CheckRows:
        # Not a closure, since a loader of another process takes a pickled copy of the set.
        return partial(_check_rows, self.folder, self._files, find_fault)

    @cached_property
    def images(self) -> ShardedRows:
        """All images, uint8 [n, c, h, w], read on access."""
        return ShardedRows([shard.images for shard in self._shards])

    @cached_property
    def teacher_logits(self) -> ShardedRows:
        """The teacher's logits on all images, float32 [n, k]."""
        return ShardedRows([shard.teacher_logits for shard in self._shards], self._checked_by(logits_fault))

    @cached_property
    def soft_targets(self) -> ShardedRows:
        """The soft targets of all images, float32 [n, k]; rows sum to 1."""
        return ShardedRows([shard.soft_targets for shard in self._shards], self._checked_by(targets_fault))

    def __len__(self) -> int:
        return self.manifest.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return dequantise(self.images[index]), self.teacher_logits[index]


def _check_rows(
    folder: Path,
    files: Sequence[str],
    find_fault: Callable[[torch.Tensor], str | None],
    shard_index: int,
    rows: torch.Tensor,
) -> None:
    fault = find_fault(rows)
    if fault:
        refuse(folder, [f"{files[shard_index]} {fault}"])
