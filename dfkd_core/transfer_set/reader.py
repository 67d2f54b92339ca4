"""A stored transfer set as rows that are read on access.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import Dataset

from dfkd_core.common.pixels import dequantise
from dfkd_core.common.rows import ShardedRows
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_core.transfer_set.shards import REDO, Shard, read_shard

__all__ = ["TransferSet"]


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
            raise TransferSetError(f"Transfer set {folder}: {', '.join(missing)} is missing. {REDO}")

    @cached_property
    def _shards(self) -> list[Shard]:
        shards = [read_shard(self.folder / record.file) for record in self.manifest.shards]
        for record, shard in zip(self.manifest.shards, shards):
            if len(shard.images) != record.num_images:
                raise TransferSetError(
                    f"{self.folder / record.file} holds {len(shard.images)} images, "
                    f"the manifest has {record.num_images}. {REDO}"
                )
        return shards

    @cached_property
    def images(self) -> ShardedRows:
        """All images, uint8 [n, c, h, w], read on access."""
        return ShardedRows([shard.images for shard in self._shards])

    @cached_property
    def teacher_logits(self) -> ShardedRows:
        """The teacher's logits on all images, float32 [n, k]."""
        return ShardedRows([shard.teacher_logits for shard in self._shards])

    @cached_property
    def soft_targets(self) -> ShardedRows:
        """The soft targets of all images, float32 [n, k]; rows sum to 1."""
        return ShardedRows([shard.soft_targets for shard in self._shards])

    def __len__(self) -> int:
        return self.manifest.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return dequantise(self.images[index]), self.teacher_logits[index]
