"""Generators derived from a seed and a name, so that every random draw has one address.

A stream is addressed by `(seed, *path)`, for example `(0, "target", 17)`: the same address yields the same numbers,
independent of earlier draws and of the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

__all__ = ["derive_generator", "derive_seed", "normal_rows", "uniform_rows"]


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the stream at `path` below `seed`.

    Args:
        seed: The run's seed, any integer.
        *path: Names and numbers that address the stream.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derive_generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a fresh CPU generator for the stream at `path` below `seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


def normal_rows(seed: int, stream: str, image_indices: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Draw N(0, 1) numbers, one row per image, each row from the image's own generator.

    Args:
        seed: The run's seed.
        stream: Purpose of the numbers; different names yield independent numbers.
        image_indices: The n images' positions in the whole transfer set.
        shape: Shape of one image's draw.

    Returns:
        float32 of shape [n, *shape].
    """
    rows = [torch.randn(*shape, generator=derive_generator(seed, stream, int(i))) for i in image_indices]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def uniform_rows(seed: int, stream: str, image_indices: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Draw U[0, 1) numbers, one row per image, each row from the image's own generator.

    Arguments and result as in `normal_rows`.
    """
    rows = [torch.rand(*shape, generator=derive_generator(seed, stream, int(i))) for i in image_indices]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
