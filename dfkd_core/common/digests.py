"""Digests of files, tensors and configuration, and atomic writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["canonical_json", "file_sha256", "json_digest", "tensors_digest", "write_atomically", "write_json"]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; dataclasses become objects. NaN is an error."""

    def encode(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        raise TypeError(f"{type(item).__name__} has no canonical JSON form")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=encode, allow_nan=False)


def json_digest(value: Any) -> str:
    """Return the SHA-256 of `canonical_json(value)` as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, independent of order and memory layout."""
    # Imported here: many commands hash files alone, and torch takes seconds.
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` and rename it to `path` if the block succeeds.

    The file has the rights of a new file, after the umask.

    Raises:
        OSError: The folder cannot be written; `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # The system applies the umask to these rights; tempfile would make a file that only its owner can read.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    rights = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        # A library may have put a file with other rights in its place.
        if stat.S_IMODE(temporary.stat().st_mode) != rights:
            temporary.chmod(rights)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys, atomically."""
    text = json.dumps(json.loads(canonical_json(value)), indent=2, sort_keys=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n")
