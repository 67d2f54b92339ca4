"""Names of the hardware that figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

__all__ = ["machine", "processor_name"]


def machine(device: torch.device) -> str:
    """Return the name of the hardware: the GPU and its CPU, or the CPU alone."""
    cores = f"{os.cpu_count()} cores of {processor_name()}"
    return f"an {torch.cuda.get_device_name(device)} with {cores}" if device.type == "cuda" else cores


def processor_name() -> str:
    """Return the processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
