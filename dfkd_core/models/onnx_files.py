"""What an ONNX file may name: weights in other files of its own folder, and operations that onnx2torch converts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_core.common.inner_files import whole_folder
from dfkd_core.common.regular_files import open_regular
from dfkd_core.errors import TeacherError

__all__ = ["check_graph", "external_place", "external_tensors", "load_external"]

# onnx2torch writes the names of operations into the code of the module's forward, between double quotes.
_CODE = re.compile(r'["\\\x00-\x1f\x7f]')
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a tensor are."""

    path: Path
    offset: int
    length: int
    """Number of bytes."""


def external_tensors(model: Any) -> Iterator[Any]:
    """Yield the tensors of an ONNX model whose bytes are in other files, also those within operations."""
    for field, value in model.ListFields():
        if field.message_type is None:
            continue
        for message in value if hasattr(value, "__len__") else (value,):
            if field.message_type.name == "TensorProto" and (message.data_location or message.external_data):
                yield message
            elif field.message_type.name != "TensorProto":
                yield from external_tensors(message)


def external_place(path: Path, tensor: Any) -> Place:
    """Return where a tensor of the ONNX file at `path` is.

    Raises:
        TeacherError: The place is not within a regular file in the folder of the ONNX file, or in its cache of Hugging
            Face.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    refused = f"{path} is refused: the weights {tensor.name!r} are in {location!r}"
    if len(entries) != len(tensor.external_data):
        raise TeacherError(f"{refused}, and a part of this place is given twice. Export it again")
    parts = location.split("/")
    if not location or os.path.isabs(location) or ".." in parts or "\\" in location or "\0" in location:
        raise TeacherError(f"{refused}, which is not a path within its folder. Export it again into one folder")
    folder = whole_folder(path.parent)
    missing = TeacherError(f"{refused}, which is missing or no regular file. Copy it into {path.parent}")
    try:
        file = (path.parent / location).resolve()
        if not file.is_relative_to(folder):
            raise TeacherError(f"{refused}, a link to another folder. Copy the file itself into the folder")
        if not file.is_file():
            raise missing
        size = file.stat().st_size
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a loop of links
        raise missing from None
    offset, length = _number(entries, "offset", 0), _number(entries, "length", -1)
    length = size - offset if length < 0 else length
    if not 0 <= offset <= offset + length <= size:
        raise TeacherError(f"{refused}, which has {size:,} bytes: fewer than the file says. Copy it again")
    return Place(file, offset, length)


def _number(entries: dict[str, str], name: str, default: int) -> int:
    text = entries.get(name, "")
    if not text:
        return default
    # Too large for any file, if it is no number.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 2**63


def load_external(path: Path, model: Any) -> None:
    """Read the tensors that are in other files into the model, in place. Errors as in `external_place`."""
    for tensor in list(external_tensors(model)):
        place = external_place(path, tensor)
        wanted = _num_bytes(tensor)
        if wanted is not None and wanted != place.length:
            raise TeacherError(
                f"{path} is refused: the weights {tensor.name!r} have {place.length:,} bytes in {place.path.name} and "
                f"{wanted:,} by their shape. Export it again"
            )
        with open_regular(place.path) as stream:
            stream.seek(place.offset)
            tensor.raw_data = stream.read(place.length)
        del tensor.external_data[:]
        tensor.data_location = 0


def _num_bytes(tensor: Any) -> int | None:
    """Return the bytes that a tensor has by its type and shape; None for types of less than a byte."""
    from onnx import helper

    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    narrow = kind.itemsize == 1 and kind.name not in ("bool", "int8", "uint8")
    return None if narrow else math.prod(tensor.dims) * int(kind.itemsize)


def check_graph(path: Path, model: Any) -> None:
    """Check that an ONNX model defines no operation itself, and that its names are names.

    Raises:
        TeacherError: It does, or they are not.
    """
    nodes = list(_nodes(model.graph))
    own = {(function.domain, function.name) for function in model.functions}
    called = own & {(node.domain, node.op_type) for node in nodes}
    if called := called | {item for item in own if item[0] in _STANDARD}:
        names = ", ".join(sorted(f"{domain}:{name}".lstrip(":") for domain, name in called))
        raise TeacherError(
            f"{path} uses an operation that onnx2torch cannot convert: its own {names}. Export it without functions of "
            "its own, or export the network as .pt2"
        )
    wrong = [text for node in nodes for text in (node.name, node.domain, node.op_type) if _CODE.search(text)]
    if wrong:
        raise TeacherError(f"{path} is refused: {wrong[0][:60]!r} is no name of an operation. Export it again")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)
