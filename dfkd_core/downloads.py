"""Downloads of published files. Their readers check every digest, so nothing in this module changes a result."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd_core.errors import DataError

__all__ = [
    "DOWNLOAD_TIMEOUT_SECONDS",
    "SYSTEM_FOLDER",
    "debian_folder",
    "download_timeout",
    "fetch_debian_package",
    "fetch_with_torchvision",
]

SYSTEM_FOLDER = Path("/usr/share/datasets")
"""Folder into which Debian's data set packages install their files."""

DOWNLOAD_TIMEOUT_SECONDS = 10.0
"""How long a server may stay silent."""
_PACKAGE_TIMEOUT_SECONDS = 900


@contextmanager
def download_timeout() -> Iterator[None]:
    """Let downloads from a silent server fail: torchvision sets no time limit and offers no way to set one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch_with_torchvision(dataset_class: Callable[..., object], folder: str, scratch: Path) -> Path:
    """Let a class of torchvision.datasets download its files into `scratch` and return their folder.

    Args:
        dataset_class: Takes a folder and `download`.
        folder: Folder of the class's files below that folder.
        scratch: An empty folder.
    """
    with download_timeout():
        dataset_class(scratch, download=True)
    return scratch / folder


def fetch_debian_package(package: str, scratch: Path) -> Path:
    """Download and unpack a Debian package into `scratch` and return its data folder; needs no root, installs nothing.

    Raises:
        DataError: apt-get or dpkg is missing or fails.
    """
    limits = ("-o", f"Acquire::http::Timeout={DOWNLOAD_TIMEOUT_SECONDS:.0f}", "-o", "Acquire::Retries=1")
    try:
        _call("apt-get", *limits, "download", package, folder=scratch)
    except DataError:
        # A fresh machine has no package lists. Only root may update the system's lists; anyone may update private ones.
        private = (*limits, *_private_apt(scratch))
        _call("apt-get", *private, "update", folder=scratch)
        _call("apt-get", *private, "download", package, folder=scratch)
    archive = next(scratch.glob("*.deb"), None)
    if archive is None:
        raise DataError("apt-get download left no .deb file")
    _call("dpkg", "-x", archive.name, "unpacked", folder=scratch)
    return debian_folder(package, scratch / "unpacked" / SYSTEM_FOLDER.relative_to("/"))


def _private_apt(scratch: Path) -> tuple[str, ...]:
    """Return options that make apt-get keep its lists and its cache in `scratch`."""
    for folder in ("lists/partial", "archives/partial"):
        (scratch / "apt" / folder).mkdir(parents=True)
    settings = {
        "Dir::State::Lists": scratch / "apt" / "lists",
        "Dir::Cache": scratch / "apt",
        # If root runs this, the user that apt would switch to may not write into the scratch folder.
        "APT::Sandbox::User": "root",
    }
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def _call(*command: str, folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PACKAGE_TIMEOUT_SECONDS)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise DataError(f"{command[0]} failed with exit status {done.returncode}: {' '.join(errors) or 'no message'}")


def debian_folder(package: str, system_folder: Path) -> Path:
    """Return the folder of the Debian package `dataset-X` below `system_folder`."""
    return system_folder / package.removeprefix("dataset-")
