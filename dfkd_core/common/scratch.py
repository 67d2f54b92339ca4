"""Tensors that are too large for the memory, in temporary files without a name.

n rows.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["tensor_in_file"]

_CHUNK = 2**20


def tensor_in_file(shape: torch.Size, dtype: torch.dtype, folder: Path | None) -> Tensor:
    """Return a tensor of zeros whose values are in a temporary file, which goes with the tensor or the process.

    Args:
        shape: Shape [n, ...] of at least one element.
        dtype: Type of the elements.
        folder: Folder of the file; None for the system's folder of temporary files.

    Raises:
        OSError: The folder cannot be written, or its disk lacks the space, which is taken here and not later.
    """
    size = math.prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        # A file with holes would end the process when the disk is full.
        for first in range(0, size, _CHUNK):
            file.write(bytes(min(_CHUNK, size - first)))
        file.flush()
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)
