"""Why a process was ended from outside: its signal, the likely cause, and the memory that it had."""

from __future__ import annotations

import errno
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from dfkd_core.common.control_groups import CGROUPS, PROC, group_folders

__all__ = ["count_oom_kills", "ending", "means_full_disk", "remedy", "signal_of"]

_GIB = 2**30
_KIB = 2**10
_SHELL_BASE = 128
# In version 1 a group without a limit has this or more.
_NO_LIMIT = 2**60

_CAUSES = {
    signal.SIGHUP: "Its terminal was closed.",
    signal.SIGINT: "It was interrupted.",
    signal.SIGTERM: "A scheduler, a shutdown or a person ended it; a limit of time is a usual reason.",
    signal.SIGXCPU: "It used all the CPU time that it may use; `ulimit -t` shows the limit.",
    signal.SIGXFSZ: "A file reached the allowed size; `ulimit -f` shows the limit.",
    signal.SIGBUS: "A file that it read was cut off, or the disk or /dev/shm is full; see: df -h . /dev/shm",
}
_CONTINUE = "Finished shards and checkpoints are kept. Continue with the same command."
_CRASH = "A library crashed in compiled code; `dfkd doctor` checks the installed packages."
_REMEDIES = {
    errno.ENOENT: "Restore or make it",
    errno.ENOSPC: "Free space (df -h . shows it)",
    errno.EDQUOT: "Free space (quota shows it)",
    errno.EFBIG: "Allow larger files (ulimit -f shows the limit)",
    errno.EACCES: "Change its rights",
    errno.EPERM: "Change its rights",
    errno.EROFS: "Mount it for writing",
}
_CHECK = "Check the file and its disk"
_FULL = ("No space left on device", "disk is full", "Disk quota exceeded")
_LEAST_FREE_BYTES = 2**20
_SHORT_OF_MEMORY = "There was too little memory: Linux counted an out-of-memory kill in this time."
_UNKNOWN_KILL = "The likely cause is too little memory, or a scheduler; Linux counted no out-of-memory kill here."
_LESS_MEMORY = "Less is needed with: dfkd run --set execution.num_workers=1 --set execution.memory_gib=1."


def signal_of(status: int) -> signal.Signals | None:
    """Return the signal that ended a process, None if it ended itself.

    Args:
        status: Exit status of `subprocess` (the negative signal) or of a shell (128 and the signal).
    """
    number = -status if status < 0 else status - _SHELL_BASE
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def ending(what: str, number: signal.Signals, oom_kills: int, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> str:
    """Return sentences that name a signal, its likely cause and the next step.

    Args:
        what: The process, as the subject of a sentence.
        number: The signal.
        oom_kills: Result of `count_oom_kills` before it began.
        proc: Folder in which Linux reports on the machine.
        cgroups: Folder in which it reports on control groups.
    """
    cause = _CAUSES.get(number, _CRASH)
    if number is signal.SIGKILL:
        was_memory = count_oom_kills(proc=proc, cgroups=cgroups) > oom_kills
        cause = f"{_SHORT_OF_MEMORY if was_memory else _UNKNOWN_KILL} {_memory(proc, cgroups)} {_LESS_MEMORY}"
    return f"{what} was ended by {number.name} (signal {number.value}). {cause} {_CONTINUE}"


def _memory(proc: Path, cgroups: Path) -> str:
    whole = _counter(proc / "meminfo", "MemTotal:") * _KIB
    limit = min(_limits(proc, cgroups), default=whole)
    group = f", its control group {limit / _GIB:.1f} GiB" if limit < whole else ""
    return f"The machine has {whole / _GIB:.1f} GiB of memory{group}."


def remedy(error: OSError) -> str:
    """Return what the user can do about a file that cannot be read or written."""
    return f"{_REMEDIES.get(error.errno or 0, _CHECK)}, then continue with the same command"


def means_full_disk(error: BaseException) -> bool:
    """Return whether an error comes from a full disk, for which libraries have errors of their own."""
    texts = f"{error} {error.__cause__}"
    return any(text in texts for text in _FULL) or shutil.disk_usage(Path.cwd()).free < _LEAST_FREE_BYTES


def count_oom_kills(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the sum of Linux's counters of out-of-memory kills: of this process's control groups and the machine."""
    groups = group_folders("memory", proc=proc, cgroups=cgroups)
    files = [group / name for group in groups for name in ("memory.events", "memory.oom_control")]
    return sum(_counter(path, "oom_kill") for path in (*files, proc / "vmstat"))


def _limits(proc: Path, cgroups: Path) -> Iterator[int]:
    for group in group_folders("memory", proc=proc, cgroups=cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                limit = int((group / name).read_text())
            except (OSError, ValueError):
                continue
            if limit < _NO_LIMIT:
                yield limit


def _counter(path: Path, name: str) -> int:
    """Return a number from a file with lines like `name 12`; 0 without it."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(line[1]) for line in words if line[:1] == [name]), 0)
