"""Folders that a command fills: whether it can, and the exchange of the files in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd_core.errors import ConfigError

__all__ = ["Stale", "check_output_folder", "finish_replacing", "is_vacant", "replacing_files"]

# States of a folder of staged files: being written; all written, stale files being deleted; files being moved.
_STATES = _UNFINISHED, _COMPLETE, _MOVING = ".dfkd-unfinished-", ".dfkd-complete-", ".dfkd-moving-"

Stale = Callable[[Path], Iterable[str]]
"""Returns the names of the files in a folder that belong to an earlier result."""


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
    return not folder.exists() or all(_is_own(path, *_STATES) for path in folder.iterdir())


@contextmanager
def replacing_files(folder: Path, *, last: str, stale: Stale) -> Iterator[Path]:
    """Yield an empty folder, and move the files that the block writes there to `folder` if the block succeeds.

    If the block fails, `folder` is unchanged. If the command is killed while files are moved, the next one finishes it,
    see `finish_replacing`.

    Args:
        folder: Folder to fill; made if it does not exist. The caller has checked that the files may be replaced.
        last: Name of the file that lists the others; it is moved after them.
        stale: Returns the names of files in `folder` that belong to an earlier result; they are deleted.

    Raises:
        ConfigError: As for `check_output_folder`.
        OSError: A file cannot be written or moved.
    """
    check_output_folder(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacing(folder, last=last, stale=stale)
    for path in folder.iterdir():
        if _is_own(path, _UNFINISHED) and not _is_running(_owner(path)):
            shutil.rmtree(path)
    # Inside of the folder, which can be on a disk of its own.
    staged = Path(tempfile.mkdtemp(dir=folder, prefix=f"{_UNFINISHED}{os.getpid()}-"))
    try:
        yield staged
        complete = _in_state(staged, _COMPLETE)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
    _exchange(complete, folder, last, stale)


def finish_replacing(folder: Path, *, last: str, stale: Stale) -> None:
    """Move the files of a finished result whose command was killed before all were moved, if there are any.

    Arguments as in `replacing_files`; nothing happens if the folder does not exist.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if _is_own(path, _COMPLETE, _MOVING) and (_owner(path) == os.getpid() or not _is_running(_owner(path))):
            _exchange(path, folder, last, stale)


def _exchange(staged: Path, folder: Path, last: str, stale: Stale) -> None:
    names = sorted((path.name for path in staged.iterdir()), key=last.__eq__)
    if staged.name.startswith(_COMPLETE):
        for name in set(stale(folder)) - set(names):
            (folder / name).unlink(missing_ok=True)
        staged = _in_state(staged, _MOVING)
    for name in names:
        (staged / name).replace(folder / name)
    staged.rmdir()


def _in_state(staged: Path, state: str) -> Path:
    """Rename a folder of staged files, which notes in one step how far its command has come."""
    return staged.rename(staged.with_name(f"{state}{_owner(staged)}-{staged.name.rpartition('-')[2]}"))


def _is_own(path: Path, *states: str) -> bool:
    return path.name.startswith(states) and path.is_dir() and not path.is_symlink()


def _owner(path: Path) -> int:
    """Return the process in the name of a folder of staged files; 0 if there is none."""
    number = path.name.rpartition("-")[0].rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
