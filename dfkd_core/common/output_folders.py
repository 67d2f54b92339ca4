"""Folders that a command fills: whether it can, and the exchange of the files in them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dfkd_core.common.digests import file_sha256, write_json
from dfkd_core.common.json_files import read_json_object
from dfkd_core.errors import ConfigError

__all__ = ["Stale", "check_output_folder", "filling_folder", "finish_replacing", "is_vacant", "replacing_files"]

_PLAN = ".plan.json"
# States of a folder of staged files: being written; all written, stale files being deleted; files being moved.
_STATES = _UNFINISHED, _COMPLETE, _MOVING = ".dfkd-unfinished-", ".dfkd-complete-", ".dfkd-moving-"

_FULL = (errno.ENOSPC, errno.EDQUOT)

Stale = Callable[[Path], Iterable[str]]
"""Returns the names of the files in a folder that belong to an earlier result."""


def check_output_folder(folder: Path) -> None:
    """Check that files can be written into a folder, which may not exist yet. Nothing stays there.

    A link to an existing folder is allowed.

    Raises:
        ConfigError: The folder or one around it is a file, a link leads nowhere, a right to write is missing,
            or the file system takes no files, as /proc.
        OSError: The disk is full.
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
    return _trial_fault(nearest)


def _trial_fault(folder: Path) -> str | None:
    """Return why no folder can be made in an existing one; its rights alone do not tell, above all for root."""
    try:
        Path(tempfile.mkdtemp(dir=folder, prefix=_UNFINISHED)).rmdir()
    except OSError as error:
        if error.errno in _FULL:
            raise
        return f"cannot be written: {folder} takes no files ({error.strerror})"
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
    with _staged(folder, last) as staged:
        yield staged
        plan = _write_plan(staged, folder, stale)
        complete = _in_state(staged, _COMPLETE)
    _exchange(complete, folder, last, plan)


@contextmanager
def filling_folder(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield an empty folder, and move the files and folders that the block makes there to `folder` if it succeeds.

    Args:
        folder: Folder to fill; made if it does not exist. The caller has checked that it is vacant.
        last: Name of the file that is moved after the others, so that it marks a whole result.

    Raises:
        ConfigError: As for `check_output_folder`.
        OSError: A file cannot be written or moved.
    """
    with _staged(folder, last) as staged:
        yield staged
        for path in sorted(staged.iterdir(), key=lambda path: path.name == last):
            path.rename(folder / path.name)
        staged.rmdir()


@contextmanager
def _staged(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder within `folder`; it is deleted if the block fails, and `folder` with it if it is new."""
    check_output_folder(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacing(folder, last=last)
    for path in folder.iterdir():
        if _is_own(path, _UNFINISHED) and not _is_running(_owner(path)):
            shutil.rmtree(path)
    # Inside of the folder, which can be on a disk of its own.
    staged = Path(tempfile.mkdtemp(dir=folder, prefix=f"{_UNFINISHED}{os.getpid()}-"))
    try:
        yield staged
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def finish_replacing(folder: Path, *, last: str) -> None:
    """Move the files of a finished result whose command was killed before all were moved, if there are any.

    Only files that the killed command noted with their digests are moved, replaced or deleted. A folder that only has
    the name of such a result is left alone.

    Args:
        folder: Folder of the result; nothing happens if it does not exist.
        last: As in `replacing_files`.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        is_left = _is_own(path, _COMPLETE, _MOVING) and (_owner(path) == os.getpid() or not _is_running(_owner(path)))
        if is_left and (plan := _read_plan(path)) and _is_true(plan, path, folder):
            _exchange(path, folder, last, plan)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The digests of the files that a result consists of, and of those in its place before."""

    new: dict[str, str]
    old: dict[str, str]


def _write_plan(staged: Path, folder: Path, stale: Stale) -> _Plan:
    """Note the digests of the files that are to be moved, and of those that they replace, and return them."""
    new = {path.name: file_sha256(path) for path in sorted(staged.iterdir())}
    names = sorted({*new, *stale(folder)})
    old = {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}
    plan = _Plan(new, old)
    write_json(staged / _PLAN, plan)
    return plan


def _read_plan(staged: Path) -> _Plan | None:
    """Return what the command noted; None if it noted nothing that can be read."""
    try:
        content = read_json_object(staged / _PLAN)
        found = _Plan(**{part: dict(content[part]) for part in ("new", "old")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(Path(name).name == name for name in (*found.new, *found.old)) else None


def _is_true(plan: _Plan, staged: Path, folder: Path) -> bool:
    """Return whether the files in both folders are those of a plan, so that no other file is lost."""
    waiting = {path.name for path in staged.iterdir()} - {_PLAN}
    if not plan.new or not waiting <= plan.new.keys():
        return False
    if any(not _has_digest(staged / name, plan.new[name]) for name in waiting):
        return False
    return all(
        _has_digest(folder / name, plan.new.get(name, ""), plan.old.get(name, ""))
        for name in {*plan.new, *plan.old}
        if os.path.lexists(folder / name) or (name in plan.new and name not in waiting)
    )


def _has_digest(path: Path, *digests: str) -> bool:
    return path.is_file() and not path.is_symlink() and file_sha256(path) in digests


def _exchange(staged: Path, folder: Path, last: str, plan: _Plan) -> None:
    names = sorted((path.name for path in staged.iterdir() if path.name != _PLAN), key=last.__eq__)
    if staged.name.startswith(_COMPLETE):
        for name in plan.old.keys() - plan.new.keys():
            (folder / name).unlink(missing_ok=True)
        staged = _in_state(staged, _MOVING)
    for name in names:
        (staged / name).replace(folder / name)
    (staged / _PLAN).unlink()
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
