"""The single codec between stored pixels, uint8, and images, float32 in [0, 1].

n images, m requested ones, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_core.common.rows import Rows

__all__ = ["dequantise", "grey_images", "load_batch", "move_batch", "quantise"]


def load_batch(images: Rows, positions: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return the images at `positions` of a uint8 set [n, c, h, w] as float32 in [0, 1], channels last.

    Args:
        images: The set.
        positions: int64 [m].
        device: Device of the batch; None for the device of the set.
    """
    batch = move_batch(images[move_batch(positions, images.device)], device or images.device)
    return dequantise(batch, memory_format=torch.channels_last)


def move_batch(batch: Tensor, device: torch.device | str) -> Tensor:
    """Return a batch on a device; the copy to a GPU does not wait for the GPU's running work."""
    to_gpu = torch.device(device).type == "cuda" and not batch.is_cuda
    return batch.pin_memory().to(device, non_blocking=True) if to_gpu else batch.to(device)


def quantise(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8 of the same shape, rounded to the nearest of 256 levels."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def dequantise(pixels: Tensor, *, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Return uint8 pixels as float32 images in [0, 1] of the same shape.

    Args:
        pixels: uint8 of any shape; [m, c, h, w] for a memory format other than its own.
        memory_format: Layout of the result.
    """
    return pixels.to(torch.float32, memory_format=memory_format).div_(255)


def grey_images(num_images: int, image_shape: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return mid-grey images float32 [n, c, h, w]for probing shapes and costs."""
    return torch.full((num_images, *image_shape), 0.5, device=device)
