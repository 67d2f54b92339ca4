"""Labelled images of the user: folders of classes, and arrays in one file.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dfkd_core.common.archives import check_npz, check_safetensors, open_regular, unchanged
from dfkd_core.common.digests import file_sha256, json_digest
from dfkd_core.common.pixels import quantise
from dfkd_core.common.strict_json import parse_json
from dfkd_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FILE_SUFFIXES", "RawImages", "check_labels", "fingerprint", "open_file", "open_folder", "picture_pixels"]

FILE_SUFFIXES = (".npz", ".safetensors")
"""Suffixes of a file with arrays."""

_PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY_MODES = ("1", "L", "LA", "La")
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


def open_folder(folder: Path) -> RawImages:
    """List a folder with one folder of pictures per class; the classes are numbered in the order of their names.

    Pictures may be at any depth. Hidden files and folders are left out. Pictures are decoded when they are read.

    Raises:
        DataError: The folder does not exist or has no classes, or a class has no pictures; on reading, a picture cannot
            be decoded.
    """
    paths, labels, names = _list_pictures(folder)

    def read(positions: list[int]) -> Iterator[Tensor]:
        return (_decode(paths[position]) for position in positions)

    return RawImages(read=read, labels=torch.tensor(labels), class_names=names)


def open_file(path: Path) -> RawImages:
    """Read `images` and `labels` from an .npz or .safetensors file.

    Raises:
        DataError: The file does not exist, is corrupt or holds pickled objects, or its arrays are malformed.
    """
    arrays, names = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}. {_ARRAYS}")
    images = _pixels(arrays["images"], path)
    labels = check_labels(arrays["labels"], str(path))
    if len(images) != len(labels):
        raise DataError(f"{path} has {len(images)} images and {len(labels)} labels: give one label per image")
    if names and int(labels.max()) >= len(names):
        raise DataError(f"{path} has {len(names)} class names and the label {int(labels.max())}: give one per class")
    return RawImages(read=lambda positions: [images[positions]], labels=labels, class_names=names)


def fingerprint(path: Path) -> str:
    """Return a digest that changes with the file or, for a folder, with a picture's name, size or modification time."""
    if path.is_file():
        return file_sha256(path)
    stats = ((picture, picture.stat()) for picture in _list_pictures(path)[0])
    return json_digest([[str(picture.relative_to(path)), stat.st_size, stat.st_mtime_ns] for picture, stat in stats])


def check_labels(labels: Tensor, source: str) -> Tensor:
    """Return labels as int64 [n], after a check that they are one class per image.

    Args:
        labels: Labels of a data set.
        source: Their source, for the message.

    Raises:
        DataError: They are not integers, have more than one axis, are empty, or some are negative.
    """
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise DataError(f"The labels in {source} are {_type_name(labels)}: they must be integers, the class from 0")
    if labels.dim() != 1 or not len(labels):
        raise DataError(f"The labels in {source} have shape {tuple(labels.shape)}: they must be [n], one per image")
    labels = labels.to(torch.int64)
    if int(labels.min()) < 0:
        raise DataError(f"The labels in {source} go down to {int(labels.min())}: classes are counted from 0")
    return labels


def picture_pixels(picture: Image, source: str) -> Tensor:
    """Return a picture of 8 bits per channel as uint8 [1, c, h, w]: c is 1 for grey, else 3; opacity is dropped.

    Raises:
        DataError: It has more than 8 bits per channel.
    """
    if picture.mode.startswith(("I", "F")):
        raise DataError(f"{source} has more than 8 bits per channel (mode {picture.mode}). Convert it to 8 bits")
    if picture.mode in _GREY_MODES:
        return torch.from_numpy(np.array(picture.convert("L")))[None, None]
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]


def _list_pictures(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    if not folder.is_dir():
        raise DataError(f"No folder {folder}. Set data.dataset to folder:PATH, one folder of pictures per class in it")
    names = tuple(sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")))
    if not names:
        raise DataError(f"{folder} holds no folders: put the pictures of each class into a separate folder there")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(_pictures_below(folder / name))
        if not found:
            endings = ", ".join(_PICTURE_SUFFIXES)
            raise DataError(f"{folder / name} holds no pictures ({endings}). Add some or delete the folder")
        paths += found
        labels += [label] * len(found)
    return paths, labels, names


def _pictures_below(folder: Path) -> Iterator[Path]:
    for below, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(_PICTURE_SUFFIXES) and not name.startswith("."):
                yield Path(below, name)


def _decode(path: Path) -> Tensor:
    # Imported here: only pictures need it.
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture_pixels(picture, str(path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded: {error}. Replace or delete it") from error


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
