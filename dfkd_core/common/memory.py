"""The memory available for computation: the limit of a container or a job counts, not the whole machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from dfkd_core.common.control_groups import CGROUPS, PROC, group_folders

__all__ = ["GIB", "memory_at_hand"]

GIB = 2**30

# Limit, use, and the part of the use that the kernel returns on demand; of version 2 and of version 1.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# Used if the system does not report its memory.
_ASSUMED = 4 * GIB


def memory_at_hand(device: torch.device | str = "cpu", *, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that can still be allocated on a device.

    On a GPU this is its free memory plus the memory that this process holds unused. On a CPU it is the memory that
    Linux reports as available, or less if a control group (a container, a batch job) sets a limit. On other systems it
    is half of the installed memory.

    Args:
        device: The device.
        proc: Folder in which Linux reports on the machine and on this process.
        cgroups: Folder in which it reports on control groups, of version 1 or 2.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_available(proc), *_left_in_groups(proc, cgroups)])


def _available(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return _ASSUMED


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the memory left to each group around this process that has a limit."""
    for folder in group_folders("memory", proc=proc, cgroups=cgroups):
        for limit_name, use_name, reclaimable_name in _GROUP_FILES:
            try:
                # A group without a limit has `max`, which is not a number.
                limit, use = (int((folder / name).read_text()) for name in (limit_name, use_name))
                counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            yield max(0, limit - use + int(counters.get(reclaimable_name, 0)))
