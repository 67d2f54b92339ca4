"""Safetensors files with tensors of known names, types and shapes.

A form such as `uint8 m c h w` names the type and the axes. A letter is the same size in all tensors of a file, a number
is the size itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from dfkd_core.common.archives import check_safetensors
from dfkd_core.common.digests import write_atomically
from dfkd_core.common.regular_files import read_regular
from dfkd_core.errors import DfkdError

__all__ = ["Forms", "read_results", "read_tensors", "write_tensors"]

Forms = Mapping[str, str]
"""The form of each tensor by its name."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all; equal tensors give equal bytes."""
    # A copy, since safetensors refuses tensors that share memory.
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        save_file(stored, temporary)


def read_tensors(path: Path, forms: Forms) -> dict[str, Tensor]:
    """Read the file of `write_tensors`.

    Args:
        path: The file.
        forms: Names and forms of the tensors that it must have.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It cannot be read, or its tensors are others; the message follows the name of the file.
    """
    try:
        content = read_regular(path)
        check_safetensors(io.BytesIO(content))
        tensors = load(content)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if tensors.keys() != forms.keys():
        raise ValueError(f"has the tensors {', '.join(sorted(tensors)) or 'none'}, not {', '.join(sorted(forms))}")
    sizes: dict[str, int] = {}
    for name, form in forms.items():
        if fault := _fault(tensors[name], form, sizes):
            raise ValueError(f"has {name} {fault}")
    return tensors


def read_results(path: Path, forms: Forms, *, missing: str, error: type[DfkdError]) -> dict[str, Tensor]:
    """Read a file of `write_tensors` that a run makes.

    Args:
        path: The file.
        forms: As in `read_tensors`.
        missing: Words on a file that is missing, before its name.
        error: Class of the error.

    Raises:
        DfkdError: The file is missing or damaged; of class `error`, names the command that makes it.
    """
    try:
        return read_tensors(path, forms)
    except FileNotFoundError:
        raise error(f"{missing}: {path} is missing. Make it with: dfkd run") from None
    except ValueError as fault:
        raise error(f"{path} {fault}. Make it again with: rm {path}; dfkd run") from None


def _fault(tensor: Tensor, form: str, sizes: dict[str, int]) -> str:
    """Return why a tensor has not this form, empty if it has; note the sizes of its axes."""
    kind, *axes = form.split()
    found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    is_same = str(tensor.dtype) == f"torch.{kind}" and tensor.dim() == len(axes)
    if not is_same or any(_size(axis, size, sizes) != size for axis, size in zip(axes, tensor.shape)):
        return f"of {found} in place of {kind} [{', '.join(axes)}]"
    is_finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
    return "" if is_finite else "with NaN or Inf"


def _size(axis: str, found: int, sizes: dict[str, int]) -> int:
    return int(axis) if axis.isdecimal() else sizes.setdefault(axis, found)
