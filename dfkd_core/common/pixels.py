"""The one codec between stored pixels, uint8, and what networks take, float32 in [0, 1].

n images, m of them asked for, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_core.common.rows import Rows

__all__ = ["load_batch", "move_batch", "quantise"]


def load_batch(images: Rows, positions: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return the images at `positions` of a uint8 set [n, c, h, w] as float32 in [0, 1], channels last.

    Args:
        images: The set.
        positions: int64 [m].
        device: Where the batch is wanted; None leaves it where the set is.
    """
    batch = move_batch(images[positions.to(images.device)], device or images.device)
    return batch.to(torch.float32, memory_format=torch.channels_last).div_(255)


def move_batch(batch: Tensor, device: torch.device | str) -> Tensor:
    """Return a batch on a device; to a GPU it is copied without waiting for what the GPU does meanwhile."""
    to_gpu = torch.device(device).type == "cuda" and not batch.is_cuda
    return batch.pin_memory().to(device, non_blocking=True) if to_gpu else batch.to(device)


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Turn images in [0, 1] into uint8 of the same shape, to the nearest of 256 grey levels."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
