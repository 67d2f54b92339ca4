"""Folders of pictures, one per class: the list of the files, and decoding.

c channels, h height, w width, k classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dfkd_core.common.inner_files import file_fault, link_fault
from dfkd_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pictures", "decode_picture", "list_pictures", "picture_pixels"]

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow's JPEG reader also reads MPO, several JPEG pictures in one file.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY_MODES = ("1", "L", "LA", "La")
_COPY = "Copy the data set with its links resolved: cp -rL {folder} COPY, and set data.dataset to folder:COPY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The picture files of a data set."""

    paths: tuple[Path, ...]
    """The files, class by class, sorted by name."""
    labels: tuple[int, ...]
    """Class of each file in [0, k)."""
    class_names: tuple[str, ...]
    """Names of the k folders, sorted."""
    num_repeated: int
    """Links to files that are listed already; they are left out."""


def list_pictures(folder: Path) -> Pictures:
    """List a folder with one folder of pictures per class; the classes are numbered in the order of their names.

    Pictures may be at any depth. Hidden files and folders are left out. The folder may be a link. Links in it must lead
    to files and folders in it, or to files in a cache of DVC. A file with several links counts once.

    Raises:
        DataError: The folder does not exist, cannot be read or has no classes; a class has no pictures; a picture is no
            regular file, a link leaves the folder, or one file is in two classes.
    """
    if not folder.is_dir():
        raise DataError(f"No folder {folder}. Set data.dataset to folder:PATH, one folder of pictures per class in it")
    names = tuple(sorted(entry.name for entry in _entries(folder) if _is_folder(entry, folder)))
    if not names:
        raise DataError(f"{folder} holds no folders: put the pictures of each class into a separate folder there")
    unreadable = next((name for name in names if not name.isprintable()), None)
    if unreadable is not None:
        raise DataError(f"{folder} has a class with the name {unreadable!r}: rename it to printable characters")
    walk = _Walk(folder)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(walk.pictures(folder / name, name))
        if not found:
            raise DataError(
                f"{folder / name} holds no pictures ({', '.join(_SUFFIXES)}). Add some or delete the folder"
            )
        paths += found
        labels += [label] * len(found)
    return Pictures(paths=tuple(paths), labels=tuple(labels), class_names=names, num_repeated=walk.num_repeated)


@dataclass(slots=True)
class _Walk:
    """A walk through the classes that meets each file and each folder once."""

    root: Path
    num_repeated: int = 0
    _seen: dict[tuple[int, int], _Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._is_new(self.root, class_name="")

    def pictures(self, folder: Path, class_name: str) -> Iterator[Path]:
        """Yield the pictures in a folder of a class and below it."""
        pending = [folder] if self._is_new(folder, class_name) else []
        while pending:
            for entry in _entries(pending.pop()):
                path = Path(entry.path)
                if _is_folder(entry, self.root):
                    if self._is_new(path, class_name):
                        pending.append(path)
                elif path.name.lower().endswith(_SUFFIXES) and self._is_new_picture(path, class_name):
                    yield path

    def _is_new_picture(self, path: Path, class_name: str) -> bool:
        fault = file_fault(path, self.root)
        if fault:
            raise DataError(f"{path} {fault}. {_COPY.format(folder=self.root) if path.is_symlink() else 'Delete it'}")
        return self._is_new(path, class_name)

    def _is_new(self, path: Path, class_name: str) -> bool:
        found = path.stat()
        is_linked = path.is_symlink() or found.st_nlink > 1
        first = self._seen.setdefault((found.st_dev, found.st_ino), _Place(path, class_name, is_linked))
        # Some network disks number all files alike, so without a link two files with one number are two.
        if first.path == path or not (is_linked or first.is_linked):
            return True
        if first.class_name != class_name:
            raise DataError(f"{first.path} and {path} are one and the same, by a link. Delete the wrong one")
        self.num_repeated += 1
        return False


@dataclass(frozen=True, slots=True)
class _Place:
    """The first path of a file or a folder."""

    path: Path
    class_name: str
    is_linked: bool


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder and not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Correct its rights, or delete it") from error


def _is_folder(entry: os.DirEntry[str], root: Path) -> bool:
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise DataError(f"{entry.path} is a link that leads nowhere. Correct or delete it")
    if not entry.is_dir():
        return False
    fault = link_fault(Path(entry.path), root)
    if fault:
        raise DataError(f"{entry.path} {fault}. {_COPY.format(folder=root)}")
    return True


def decode_picture(path: Path) -> Tensor:
    """Decode a BMP, JPEG, PNG, PPM, PGM, TIFF or WebP file, recognised by its content, as uint8 [1, 1 or 3, h, w].

    Of a file with several pictures, such as the JPEG files of phones (MPO), the first is decoded.

    Raises:
        DataError: The file is damaged, has another format, or has too many pixels or more than 8 bits per channel.
    """
    # Imported here: only pictures need it.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return picture_pixels(picture, str(path))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} cannot be decoded: its content is none of {', '.join(_FORMATS)}. Replace or delete it"
        ) from error
    # Pillow's readers raise many kinds of errors for a damaged file.
    except Exception as error:
        raise DataError(f"{path} cannot be decoded: {error}. Replace or delete it") from error


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
