"""Files in a folder that somebody else may have filled: only regular files inside it are opened."""

from __future__ import annotations

import re
import stat
from pathlib import Path

__all__ = ["file_fault", "link_fault", "whole_folder"]

# With `cache.type symlink`, DVC replaces the files that it tracks by links into its cache.
_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_fault(path: Path, folder: Path) -> str | None:
    """Return the reason that `path` must not be opened as a file of `folder`, None if there is none.

    A file must be regular. A link must lead to a file inside the folder or in a cache of DVC. The reason begins with a
    verb, for example "is missing".

    Args:
        path: The file; it is not opened.
        folder: Folder that it belongs to; the folder itself may be a link.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to a file that does not exist" if path.is_symlink() else "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(mode):
        return f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')} in place of a file"
    return link_fault(path, folder)


def whole_folder(folder: Path) -> Path:
    """Return the folder that links in `folder` may not leave, resolved.

    It is the folder itself, or, for a snapshot in a cache of Hugging Face, whose files are links into `blobs`, the
    folder that holds `snapshots` and `blobs` of one repository.
    """
    place = folder.resolve()
    for snapshot in (place, *place.parents):
        if snapshot.parent.name == "snapshots" and (snapshot.parent.parent / "blobs").is_dir():
            return snapshot.parent.parent
    return place


def link_fault(path: Path, folder: Path) -> str | None:
    """Return a reason if `path` is a link that leaves `folder`, and None otherwise.

    Args:
        path: An existing file or folder.
        folder: Folder that it belongs to; the folder itself may be a link.
    """
    if not path.is_symlink():
        return None
    target = path.resolve()
    if target.is_relative_to(folder.resolve()) or _DVC_CACHE.search(target.as_posix()):
        return None
    return f"is a link to {target}, outside of {folder}"
