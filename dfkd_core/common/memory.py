"""How much memory there is to compute in, where a container or a job's limit counts and not the whole machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["GIB", "group_folders", "memory_at_hand"]

GIB = 2**30

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Limit, use, and the part of the use that the kernel gives back on demand; of version 2 and of version 1.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# Where the system does not tell.
_ASSUMED = 4 * GIB


def memory_at_hand(device: torch.device | str = "cpu", *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return the bytes that can still be allocated on a device.

    On a GPU what is free on it and what this process holds unused. On a CPU what Linux calls available, or less where a
    control group (a container, a batch job) sets a limit; on other systems half of what is installed.

    Args:
        device: The device.
        proc: Where Linux tells of the machine and of this process.
        cgroups: Where it tells of control groups, of version 1 or 2.
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
    """Yield what is left to each group around this process that has a limit."""
    for folder in group_folders("memory", proc=proc, cgroups=cgroups):
        for limit_name, use_name, reclaimable_name in _GROUP_FILES:
            try:
                # A group without a limit says `max`, which is no number.
                limit, use = (int((folder / name).read_text()) for name in (limit_name, use_name))
                counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            yield max(0, limit - use + int(counters.get(reclaimable_name, 0)))


def group_folders(controller: str, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Iterator[Path]:
    """Yield the folders of this process's control groups, each followed by those around it.

    Args:
        controller: What they limit: `memory` or `cpu`. In version 1 each has groups of its own.
        proc: Where Linux tells of this process.
        cgroups: Where it tells of control groups, of version 1 or 2.
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
        # Inside of a container the path may be the host's, and the limit is then at the root.
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
