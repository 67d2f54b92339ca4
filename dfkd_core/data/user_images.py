"""Labelled images of the user: folders of classes, and arrays in one file.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dfkd_core.common.archives import check_npz, check_safetensors
from dfkd_core.common.class_names import class_names_fault
from dfkd_core.common.digests import file_sha256, json_digest
from dfkd_core.common.json_files import parse_json
from dfkd_core.common.pixels import quantise
from dfkd_core.common.regular_files import open_regular, unchanged
from dfkd_core.data.pictures import decode_picture, list_pictures
from dfkd_core.errors import DataError

__all__ = ["FILE_SUFFIXES", "RawImages", "check_labels", "fingerprint", "open_file", "open_folder"]

FILE_SUFFIXES = (".npz", ".safetensors")
"""Suffixes of a file with arrays."""

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK_IMAGES = 4096
_ARRAYS = "A file holds the arrays `images` and `labels`, see docs/data.md"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawImages:
    """Labelled images at their native sizes, read on access."""

    read: Callable[[list[int]], Iterable[Tensor]]
    """Returns the images at the positions in their order, as uint8 tensors [m, 1 or 3, h, w]; sizes may differ."""
    labels: Tensor
    """int64 [n], 0 or more."""
    class_names: tuple[str, ...] = ()
    """Names of the k classes in the order of the labels; empty if they are unknown."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on what was read."""


def open_folder(folder: Path) -> RawImages:
    """List a folder with one folder of pictures per class, see `list_pictures`; they are decoded when they are read.

    Raises:
        DataError: As for `list_pictures`; on reading, a picture cannot be decoded.
    """
    pictures = list_pictures(folder)

    def read(positions: list[int]) -> Iterator[Tensor]:
        return (decode_picture(pictures.paths[position]) for position in positions)

    repeated = pictures.num_repeated
    note = f"left out {repeated} link{'s' if repeated > 1 else ''} to pictures that already count"
    return RawImages(
        read=read,
        labels=torch.tensor(pictures.labels),
        class_names=pictures.class_names,
        notes=(note,) if repeated else (),
    )


def open_file(path: Path) -> RawImages:
    """Read `images` and `labels` from an .npz or .safetensors file.

    Raises:
        DataError: The file does not exist, is corrupt or holds pickled objects, or its arrays are malformed.
    """
    # Opening a pipe would wait for ever.
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file. Correct data.dataset: file:PATH")
    arrays, names = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}. {_ARRAYS}")
    images = _pixels(arrays["images"], path)
    labels = check_labels(arrays["labels"], str(path))
    if len(images) != len(labels):
        raise DataError(f"{path} has {len(images)} images and {len(labels)} labels: give one label per image")
    if fault := class_names_fault(names):
        raise DataError(f"class_names in {path}: {fault}. Give each class a name of its own, or leave the names out")
    if names and int(labels.max()) >= len(names):
        raise DataError(f"{path} has {len(names)} class names and the label {int(labels.max())}: give one per class")
    return RawImages(read=lambda positions: [images[positions]], labels=labels, class_names=names)


def fingerprint(path: Path) -> str:
    """Return a digest that changes with the file or, for a folder, with a picture's name, size or modification time."""
    if path.is_file():
        return file_sha256(path)
    stats = ((picture, picture.stat()) for picture in list_pictures(path).paths)
    return json_digest([[str(picture.relative_to(path)), stat.st_size, stat.st_mtime_ns] for picture, stat in stats])


def check_labels(labels: Tensor, source: str) -> Tensor:
    """Return labels as int64 [n], after a check that they are one class per image.

    Args:
        labels: Labels of a data set, [n] or [n, 1], integers or floats that are whole numbers.
        source: Their source, for the message.

    Raises:
        DataError: They are not whole numbers, have another shape, are empty, or some are negative.
    """
    if labels.dtype not in _WHOLE and not (labels.dtype in _FLOATS and _are_whole(labels)):
        raise DataError(f"The labels in {source} are {_type_name(labels)}: they must be integers, the class from 0")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels.flatten()
    if labels.dim() != 1 or not len(labels):
        raise DataError(f"The labels in {source} have shape {tuple(labels.shape)}: they must be [n], one per image")
    labels = labels.to(torch.int64)
    if int(labels.min()) < 0:
        raise DataError(f"The labels in {source} go down to {int(labels.min())}: classes are counted from 0")
    return labels


def _read_npz(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        # The file that is checked is the one that is read.
        with open_regular(path) as stream:
            if stream.read(6) == b"\x93NUMPY":
                raise DataError(f"{path} is not an .npz file. Write one with numpy.savez")
            check_npz(stream)
            archive = np.load(stream, allow_pickle=False)
            found = {name: archive[name] for name in ("images", "labels", "class_names") if name in archive}
    except FileNotFoundError:
        raise DataError(f"No file {path}. Correct data.dataset: file:PATH") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Write plain arrays with numpy.savez; nothing is unpickled"
        ) from error
    names = found.pop("class_names", np.array([], dtype=str))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"class_names in {path} must be a list of strings, got {names.dtype} of shape {names.shape}")
    return {name: _to_tensor(array, name, path) for name, array in found.items()}, tuple(names.tolist())


def _to_tensor(array: np.ndarray[Any, Any], name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{name} in {path} has type {array.dtype}. {_ARRAYS}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        with unchanged(path) as stream, safe_open(path, "pt") as archive:
            text = check_safetensors(stream).metadata.get("class_names", "[]")
            found = {name: archive.get_tensor(name) for name in ("images", "labels") if name in archive.keys()}
    except FileNotFoundError:
        raise DataError(f"No file {path}. Correct data.dataset: file:PATH") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} is not a complete safetensors file: {error}") from error
    try:
        names = parse_json(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"class_names in the metadata of {path} must be a JSON list of strings, got {text[:80]!r}")
    return found, tuple(names)


def _are_whole(labels: Tensor) -> bool:
    # Above 2^53, not every whole number is a float.
    return bool((labels.isfinite() & (labels == labels.round()) & (labels.abs() < 2**53)).all())


def _pixels(images: Tensor, path: Path) -> Tensor:
    """Return images as uint8 [n, 1 or 3, h, w]."""
    images = _channels_first(images, path)
    if images.dtype == torch.uint8:
        return images
    if images.dtype not in _FLOATS:
        raise DataError(f"images in {path} are {_type_name(images)}: they must be uint8, or floats in [0, 1]")
    low, high = (bound.item() for bound in images.aminmax())
    if not 0 <= low <= high <= 1:
        raise DataError(
            f"images in {path} are floats from {low:g} to {high:g}: they must be in [0, 1] and not normalised, as the "
            "teacher normalises them"
        )
    return torch.cat([quantise(chunk.float()) for chunk in torch.split(images, _CHUNK_IMAGES)])


def _channels_first(images: Tensor, path: Path) -> Tensor:
    shape = tuple(images.shape)
    if 0 in shape or images.dim() not in (3, 4):
        raise DataError(f"images in {path} have shape {shape}: they must be [n, h, w], [n, h, w, c] or [n, c, h, w]")
    if images.dim() == 3:
        return images[:, None]
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        problem = "c must be 1 or 3" if not first else "the axis of the channels is ambiguous"
        raise DataError(f"images in {path} have shape {shape} for [n, h, w, c] or [n, c, h, w]: {problem}")
    return images if first else images.permute(0, 3, 1, 2)


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
