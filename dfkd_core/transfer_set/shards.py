"""One shard of a transfer set: a safetensors file.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dfkd_core.common.archives import check_safetensors
from dfkd_core.common.digests import file_sha256, write_atomically
from dfkd_core.common.inner_files import file_fault
from dfkd_core.common.regular_files import unchanged
from dfkd_core.errors import TransferSetError

__all__ = [
    "REDO",
    "SHARD_NAME",
    "Form",
    "Shard",
    "ShardRecord",
    "read_form",
    "read_shard",
    "shard_name",
    "storing",
    "write_shard",
]

SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors")
"""Pattern of the shard names allowed in a manifest: files in its own folder."""

REDO = "Make it again: dfkd stage synthesize (in artifacts/teachers) or dfkd synthesize (in another folder)"
"""The next command if a stored set is damaged."""

Form = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor by its name."""

_FORM = {
    "images": ("uint8", "[n, c, h, w]"),
    "teacher_logits": ("float32", "[n, k]"),
    "soft_targets": ("float32", "[n, k]"),
    "image_index": ("int64", "[n]"),
}
_TYPES = {"U8": "uint8", "F32": "float32", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The images of one shard file and the teacher's outputs on them; n images, k classes.

    Raises:
        TransferSetError: A tensor has another type or shape.
    """

    images: torch.Tensor
    """uint8 [n, c, h, w]."""
    teacher_logits: torch.Tensor
    """float32 [n, k], the teacher's output on the stored (quantised) images."""
    soft_targets: torch.Tensor
    """float32 [n, k], the distribution that each image was made for; rows sum to 1."""
    image_index: torch.Tensor
    """int64 [n], position of each image in the whole set."""

    def __post_init__(self) -> None:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        form = {name: (str(item.dtype).removeprefix("torch."), tuple(item.shape)) for name, item in tensors.items()}
        fault = _form_fault(form)
        if fault:
            raise TransferSetError(f"The shard {fault}")


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
    with storing(path), write_atomically(path) as temporary:
        save_file(_stored_form(shard), temporary)
    return ShardRecord(file=path.name, sha256=file_sha256(path), num_images=len(shard.images))


def _stored_form(shard: Shard) -> dict[str, torch.Tensor]:
    """Return the tensors as safetensors takes them: contiguous, on the CPU, none in the memory of another."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for field in fields(shard):
        tensor = getattr(shard, field.name).detach().contiguous().cpu()
        memory = tensor.untyped_storage().data_ptr()
        found[field.name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def read_shard(path: Path) -> Shard:
    """Read a shard; its tensors are memory-mapped and read on access.

    Raises:
        TransferSetError: The file is missing, truncated, no regular file or a link to another folder, or its tensors
            are not those of a shard.
    """
    try:
        form = read_form(path)
        if isinstance(form, str):
            raise TransferSetError(f"Shard {path} {form}. {REDO}")
        return Shard(**load_file(path))
    # Somebody exchanged the file after its check.
    except (OSError, SafetensorError, TypeError) as error:
        raise TransferSetError(f"Shard {path} was changed while it was read ({error}). {REDO}") from None


def read_form(path: Path) -> Form | str:
    """Return the types and shapes in the header of a shard, or the reason that the file is no shard.

    The reason begins with a verb, for example "is missing".
    """
    fault = file_fault(path, path.parent)
    if fault:
        return fault
    try:
        with unchanged(path) as stream, safe_open(path, "pt") as file:
            check_safetensors(stream)
            slices = {name: file.get_slice(name) for name in file.keys()}
            form = {
                name: (_TYPES.get(found.get_dtype(), found.get_dtype()), tuple(found.get_shape()))
                for name, found in slices.items()
            }
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (SafetensorError, ValueError) as error:
        return f"is truncated or not a shard ({error})"
    return _form_fault(form) or form


def _form_fault(form: Form) -> str | None:
    missing, unknown = sorted(_FORM.keys() - form.keys()), sorted(form.keys() - _FORM.keys())
    if missing or unknown:
        words = f"lacks {' and '.join(missing)}" if missing else f"has the unknown tensor {unknown[0]!r}"
        return f"{words}: another version of dfkd or another program wrote it"
    for name, (kind, axes) in _FORM.items():
        found, shape = form[name]
        if found != kind or len(shape) != len(axes.split()) or 0 in shape:
            return f"has {name} of {found} {list(shape)} in place of {kind} {axes}"
    lengths = [shape[0] for _, shape in form.values()]
    if len(set(lengths)) > 1:
        return f"has tensors of {min(lengths)} and of {max(lengths)} rows in place of one row per image"
    logits, targets = form["teacher_logits"][1][1], form["soft_targets"][1][1]
    return None if logits == targets else f"has {logits} classes in teacher_logits and {targets} in soft_targets"
