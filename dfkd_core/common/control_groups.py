"""Control groups of Linux: the limits of a container or a job. This module imports little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["CGROUPS", "PROC", "group_folders"]

PROC = Path("/proc")
"""Folder in which Linux reports on the machine and on this process."""
CGROUPS = Path("/sys/fs/cgroup")
"""Folder in which it reports on control groups."""


def group_folders(controller: str, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[Path]:
    """Yield the folders of this process's control groups, each followed by those around it.

    Args:
        controller: Resource that they limit: `memory` or `cpu`. In version 1 each has separate groups.
        proc: Folder in which Linux reports on this process.
        cgroups: Folder in which it reports on control groups, of version 1 or 2.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        group = root / path.strip("/")
        # Inside a container the path may be the host's, and the limit is then at the root.
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
