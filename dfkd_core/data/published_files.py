"""The published files of the labelled data sets: search, download and check.

The data folder is searched first, then the system's folder; otherwise the files are downloaded into the data folder.
Every file is checked against a checksum each time it is read.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dfkd_core.common.digests import write_atomically
from dfkd_core.downloads import SYSTEM_FOLDER, debian_folder, fetch_debian_package, fetch_with_torchvision
from dfkd_core.errors import DataError

__all__ = ["IDX_SETS", "FileSet", "ensure_files", "find_files", "read_files", "torchvision_class"]


def ensure_files(dataset: str, root: Path, *, system_folder: Path = SYSTEM_FOLDER) -> Path:
    """Find or download a data set's files, check every one, and return their folder.

    Args:
        dataset: Name of a data set that has files.
        root: Data folder, which is searched first and into which files are downloaded.
        system_folder: Folder with Debian's data set packages.

    Raises:
        DataError: A file in the data folder is corrupt, or no way to find or download the data set worked.
    """
    files = _file_set(dataset)
    folder, _ = _obtain(dataset, files, list(files.checksums), root, system_folder)
    return folder


def find_files(dataset: str, root: Path, *, system_folder: Path = SYSTEM_FOLDER) -> Path | None:
    """Return the folder with all files of a data set, None if they must be downloaded; nothing is read or checked.

    Args:
        dataset: Name of a data set that has files.
        root: Data folder, as for `ensure_files`.
        system_folder: Folder with Debian's data set packages.
    """
    files = _file_set(dataset)
    folders = [root / below for below in files.folders]
    if files.debian_package is not None:
        folders.append(debian_folder(files.debian_package, system_folder))
    for folder in folders:
        try:
            for name in files.checksums:
                _find_file(folder, name)
        except FileNotFoundError:
            continue
        return folder
    return None


def read_files(
    dataset: str, names: Sequence[str], root: Path, *, system_folder: Path = SYSTEM_FOLDER
) -> dict[str, bytes]:
    """Return the unpacked content of the files `names`; only these are checked unless the data set must be downloaded.

    Args:
        dataset: Name of a data set that has files.
        names: File names as published, without .gz.
        root: Data folder, as for `ensure_files`.
        system_folder: Folder with Debian's data set packages.

    Raises:
        DataError: As for `ensure_files`.
    """
    _, contents = _obtain(dataset, _file_set(dataset), names, root, system_folder)
    return contents


def torchvision_class(dataset: str) -> Any:
    """Return the class in torchvision.datasets that downloads the data set and reads it."""
    # Imported here: torchvision takes two seconds to import, and reading idx files does not need it.
    from dfkd_core.common.vision import datasets

    return getattr(datasets, IDX_SETS[dataset].torchvision_name if dataset in IDX_SETS else dataset.upper())


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """The files of one data set and their possible places."""

    torchvision_name: str
    """Class in torchvision.datasets that can download the files."""
    folders: tuple[str, ...]
    """Possible folders of the files below the data folder; downloads go into the first."""
    checksums: Mapping[str, str]
    """Checksum of each file's content, after unpacking if the file is a .gz."""
    algorithm: str = "sha256"
    debian_package: str | None = None
    """Name `dataset-X` of a package that installs the files into the folder X below `SYSTEM_FOLDER`."""


IDX_SETS = {
    "fashion_mnist": FileSet(
        torchvision_name="FashionMNIST",
        folders=("fashion_mnist", "FashionMNIST/raw"),
        checksums={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        debian_package="dataset-fashion-mnist",
    ),
    "mnist": FileSet(
        torchvision_name="MNIST",
        folders=("mnist", "MNIST/raw"),
        checksums={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
}
"""Data sets in the idx format by name. The digests are of the unpacked content: Debian compresses the same bytes again,
so its .gz differ from the published ones."""


def _file_set(name: str) -> FileSet:
    if name in IDX_SETS:
        return IDX_SETS[name]
    listing = torchvision_class(name)
    files = [*listing.train_list, *listing.test_list, (listing.meta["filename"], listing.meta["md5"])]
    return FileSet(
        torchvision_name=name.upper(),
        folders=(f"{name}/{listing.base_folder}", listing.base_folder),
        checksums=dict(files),
        algorithm="md5",
    )


def _obtain(
    dataset: str, files: FileSet, names: Sequence[str], root: Path, system_folder: Path
) -> tuple[Path, dict[str, bytes]]:
    """Return the folder that holds the data set and the checked content of the files `names`."""
    failures: list[str] = []
    for folder in (root / below for below in files.folders):
        try:
            return folder, _read_folder(folder, files, names)
        except OSError as error:
            failures.append(f"{folder}: {_reason(error)}")
        except DataError as error:
            raise DataError(f"{error}. Delete this file and run the command again to download it again") from None
    if files.debian_package is not None:
        folder = debian_folder(files.debian_package, system_folder)
        try:
            return folder, _read_folder(folder, files, names)
        except (OSError, DataError) as error:
            failures.append(f"{folder}: {_reason(error)}")
    destination = root / files.folders[0]
    for way, fetch in _ways(dataset, files):
        try:
            return destination, _fetch_into(destination, files, names, fetch)
        except (OSError, RuntimeError, DataError, http.client.HTTPException, subprocess.SubprocessError) as error:
            failures.append(f"{way}: {_reason(error)}")
    raise DataError(_not_found(dataset, destination, failures))


def _not_found(dataset: str, destination: Path, failures: Sequence[str]) -> str:
    tried = "\n".join(f"  - {failure}" for failure in failures)
    return (
        f"The data set {dataset} was not found and could not be downloaded. Tried in turn:\n{tried}\n"
        f"Put its files into {destination}, or set data.dataset to digits, which needs no download"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_folder(folder: Path, files: FileSet, names: Sequence[str]) -> dict[str, bytes]:
    """Read files and check them; all must exist, so that no part of a data set comes from another place.

    Raises:
        FileNotFoundError: A file of the data set is missing, packed and unpacked.
        DataError: One of the files `names` is corrupt.
    """
    paths = {name: _find_file(folder, name) for name in files.checksums}
    return {name: _read_checked(paths[name], files.checksums[name], files.algorithm) for name in names}


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"it has no {name}.gz" if folder.is_dir() else "no such folder")


def _read_checked(path: Path, expected: str, algorithm: str) -> bytes:
    raw = path.read_bytes()
    try:
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        found = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
        raise DataError(
            f"{path} is corrupt: it cannot be unpacked ({error}). Expected content with {algorithm} {expected}, "
            f"found a file of {len(raw)} bytes with {algorithm} {found}"
        ) from None
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(f"{path} is corrupt: expected content with {algorithm} {expected}, found {found}")
    return content


_Fetch = Callable[[Path], Path]
"""Writes a data set's files below a scratch folder and returns the folder that holds them."""


def _ways(dataset: str, files: FileSet) -> Iterator[tuple[str, _Fetch]]:
    yield (
        f"torchvision.datasets.{files.torchvision_name} (download)",
        partial(fetch_with_torchvision, torchvision_class(dataset), files.folders[-1]),
    )
    if files.debian_package is not None:
        yield f"Debian package {files.debian_package}", partial(fetch_debian_package, files.debian_package)


def _fetch_into(destination: Path, files: FileSet, names: Sequence[str], fetch: _Fetch) -> dict[str, bytes]:
    """Download all files, check them and only then move them to `destination`; return the content of `names`."""
    with tempfile.TemporaryDirectory(prefix="dfkd-") as scratch:
        source = fetch(Path(scratch))
        contents = _read_folder(source, files, list(files.checksums))
        for path in (_find_file(source, name) for name in files.checksums):
            with write_atomically(destination / path.name) as temporary:
                shutil.copyfile(path, temporary)
    return {name: contents[name] for name in names}
