"""The cores, the memory and the GPUs that this process may use."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from dfkd_core.errors import ConfigError
from dfkd_flows.doctor.findings import Finding, fault, note, ok

__all__ = ["check_machine", "cpu_model", "device_findings", "num_cores", "parallelism_findings"]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_DRIVER = Path("/proc/driver/nvidia/version")
_LITTLE_MEMORY_GIB = 1.0
_LITTLE_FREE_SHARE = 0.1


def check_machine() -> Iterator[Finding]:
    """Yield the findings about processor, memory and GPUs."""
    yield _cpu(num_cores(), os.cpu_count() or 1)
    yield _memory()
    yield from _gpus()


def num_cores(*, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """Return the cores that this process may use: those of its affinity, or fewer if a control group limits them.

    Args:
        proc: Linux's folder of processes.
        cgroups: Linux's folder of control groups, version 1 or 2.
    """
    from dfkd_core.common.control_groups import group_folders

    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(bound), *(_quotas(group_folders("cpu", proc=proc, cgroups=cgroups)))])


def _quotas(folders: Iterator[Path]) -> Iterator[float]:
    for folder in folders:
        for read in (_quota_of_version_2, _quota_of_version_1):
            try:
                quota, period = read(folder)
            except (OSError, ValueError):
                # There is no such file, or it holds the word `max`.
                continue
            if quota > 0 and period > 0:
                yield quota / period


def _quota_of_version_2(folder: Path) -> tuple[int, int]:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)


def _quota_of_version_1(folder: Path) -> tuple[int, int]:
    # Without a limit the quota is -1.
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())


def _cpu(usable: float, installed: int) -> Finding:
    of = f" of {installed}" if usable < installed else ""
    return ok("cpu", f"{cpu_model()}, {usable:g}{of} cores")


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> Finding:
    import psutil

    from dfkd_core.common.memory import GIB, memory_at_hand

    found = psutil.virtual_memory()
    at_hand = memory_at_hand() / GIB
    limited = ", limited by a control group" if at_hand < 0.9 * found.available / GIB else ""
    text = f"{at_hand:.1f} GiB free of {found.total / GIB:.1f}{limited}"
    if at_hand < _LITTLE_MEMORY_GIB:
        return note("memory", f"{text}: little", "end other programs, or raise the limit of the container or job")
    return ok("memory", text)


def _gpus() -> Iterator[Finding]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    said = "".join(f": {' '.join(str(warning.message).split())}" for warning in caught[:1])
    if not count and (_DRIVER.exists() or shutil.which("nvidia-smi")):
        text = f"this machine has an NVIDIA driver, and torch {torch.__version__} finds no GPU{said}"
        yield note("gpu", text, "nvidia-smi; then a CUDA build of torch for that driver, or unset CUDA_VISIBLE_DEVICES")
    elif not count:
        yield ok("gpu", "none, the CPU is used")
    for index in range(count):
        yield _gpu(index)


def _gpu(index: int) -> Finding:
    import torch

    from dfkd_core.common.memory import GIB

    name = f"cuda:{index} {torch.cuda.get_device_name(index)}"
    try:
        free, total = torch.cuda.mem_get_info(index)
    # Drivers fail in different ways, for example if another process holds all memory of the device.
    except RuntimeError as error:
        return note("gpu", f"{name} cannot be opened: {str(error).splitlines()[0]}", "nvidia-smi")
    text = f"{name}, {free / GIB:.1f} GiB free of {total / GIB:.1f}"
    return note("gpu", f"{text}: little", "nvidia-smi") if free < _LITTLE_FREE_SHARE * total else ok("gpu", text)


def device_findings(device: str) -> Iterator[Finding]:
    """Yield whether the machine has the device of the parameters."""
    from dfkd_flows.settings.checks import check_device

    try:
        found = check_device(device)
    except ConfigError as error:
        yield fault("device", str(error), "dfkd run --set execution.device=auto")
    else:
        yield ok("device", f"execution.device: {device}" + (f", here {found}" if device == "auto" else ""))


def parallelism_findings(num_workers: int, num_threads: int, cores: float) -> Iterator[Finding]:
    """Yield a note for each setting that runs more at once than there are cores.

    Args:
        num_workers: Shards that are made at once.
        num_threads: Threads of training and evaluation.
        cores: Cores that this process may use.
    """
    fitting = max(1, int(cores))
    for name, value in (("num_workers", num_workers), ("num_threads", num_threads)):
        if value > fitting:
            text = f"execution.{name} is {value} with {cores:g} core{'' if cores == 1 else 's'}, which slows runs"
            yield note("cpu", text, f"dfkd run --set execution.{name}={fitting}")
