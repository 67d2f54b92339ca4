"""Folders that a command fills: whether it can, and the exchange of the files in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd_core.errors import ConfigError

__all__ = ["check_output_folder", "is_vacant", "replacing_files"]

_UNFINISHED = ".dfkd-unfinished-"


def check_output_folder(folder: Path) -> None:
    """Check that files can be written into a folder, which may not exist yet. Nothing is created.

    A link to an existing folder is allowed.

    Raises:
        ConfigError: The folder or one around it is a file, a link leads nowhere, or a right to write is missing.
    """
    fault = _fault(folder)
    if fault:
        raise ConfigError(f"{folder} {fault}. Give another folder, or correct this one")


def _fault(folder: Path) -> str | None:
    try:
        place = folder.resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            place.stat()
    # Python 3.11 and 3.12 report a loop of links as a RuntimeError.
    except (OSError, RuntimeError) as error:
        return f"cannot be used ({getattr(error, 'strerror', None) or 'its links form a loop'})"
    if folder.is_symlink() and not place.exists():
        return f"is a link to {place}, which does not exist"
    nearest = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return "is not a folder" if nearest == place else f"cannot be made: {nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"cannot be written: {nearest} is read-only for this user"
    return None


def is_vacant(folder: Path) -> bool:
    """Return whether a folder does not exist, is empty, or holds only the remains of a killed command."""
    return not folder.exists() or all(_is_remains(path) for path in folder.iterdir())


@contextmanager
def replacing_files(folder: Path, *, last: str, stale: Callable[[Path], Iterable[str]]) -> Iterator[Path]:
    """Yield an empty folder, and move the files that the block writes there to `folder` if the block succeeds.

    If the block fails, `folder` is unchanged. The file `last` lists the others. It is moved after them, and only then
    are stale files deleted, so that it never lists a file that does not exist.

    Args:
        folder: Folder to fill; made if it does not exist. The caller has checked that the files may be replaced.
        last: Name of the file that lists the others.
        stale: Returns the names of files in `folder` that belong to an earlier result; called before they are replaced.

    Raises:
        ConfigError: As for `check_output_folder`.
        OSError: A file cannot be written or moved.
    """
    check_output_folder(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for path in filter(_is_remains, list(folder.iterdir())):
        shutil.rmtree(path)
    try:
        # Inside of the folder, which can be on a disk of its own.
        with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as staged:
            yield Path(staged)
            _exchange(Path(staged), folder, last, stale)
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _exchange(staged: Path, folder: Path, last: str, stale: Callable[[Path], Iterable[str]]) -> None:
    names = sorted(path.name for path in staged.iterdir())
    old = sorted(set(stale(folder)) - set(names))
    for name in sorted(names, key=last.__eq__):
        (staged / name).replace(folder / name)
    for name in old:
        (folder / name).unlink(missing_ok=True)


def _is_remains(path: Path) -> bool:
    return path.name.startswith(_UNFINISHED) and path.is_dir() and not path.is_symlink()
