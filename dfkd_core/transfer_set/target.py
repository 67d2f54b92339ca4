"""The folder that a new transfer set is written into: nothing but an earlier set is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd_core.common.output_folders import check_output_folder, finish_replacing, is_vacant, replacing_files
from dfkd_core.errors import ConfigError, TransferSetError
from dfkd_core.transfer_set.checks import digest_faults
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, Manifest, read_manifest
from dfkd_core.transfer_set.shards import SHARD_NAME, storing

__all__ = ["check_target", "replacing_set"]

_GIVE_ANOTHER = "Give a new or an empty folder"


def check_target(folder: Path) -> None:
    """Check that a transfer set may be written into a folder: it is new, empty, or holds a whole earlier set.

    Files beside an earlier set are allowed, except those with the name of a shard. A set whose command was killed while
    its files were moved is finished first.

    Raises:
        ConfigError: The folder cannot be written, or the new set could replace a file that no earlier set lists.
    """
    check_output_folder(folder)
    finish_replacing(folder, last=MANIFEST_NAME)
    if is_vacant(folder):
        return
    manifest = _earlier_set(folder)
    fault = next(digest_faults(folder, manifest.shards), None)
    if fault:
        raise ConfigError(
            f"{folder} holds a transfer set that has changed since it was made ({fault}), so it is not replaced. "
            f"Delete it to make it again. {_GIVE_ANOTHER} to keep it"
        )
    others = sorted(set(_set_files(folder)) - {record.file for record in manifest.shards})
    if others:
        raise ConfigError(
            f"{folder} holds {others[0]}, which is not part of the transfer set in it, so the set is not replaced. "
            f"Move or delete this file. {_GIVE_ANOTHER} to keep it"
        )


def _earlier_set(folder: Path) -> Manifest:
    if not (folder / MANIFEST_NAME).is_file():
        raise ConfigError(f"{folder} is not empty and not a transfer set. {_GIVE_ANOTHER}")
    try:
        return read_manifest(folder)
    except TransferSetError as error:
        fault = str(error).partition(". ")[0]
        raise ConfigError(f"{folder} is not empty, and {fault}. {_GIVE_ANOTHER}") from error


@contextmanager
def replacing_set(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for the files of a set, and move them to `folder` if the block succeeds.

    An earlier set in `folder` stays until then. Its shards are then deleted, other files stay. `check_target`
    finds out whether a folder that is not the project's own may be replaced.

    Raises:
        ConfigError: The folder cannot be written.
        TransferSetError: A file cannot be written, for example because the disk is full.
    """
    with storing(folder), replacing_files(folder, last=MANIFEST_NAME, stale=_set_files) as staged:
        yield staged


def _set_files(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if SHARD_NAME.fullmatch(path.name))
