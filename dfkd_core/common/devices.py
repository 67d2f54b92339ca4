"""Which device to compute on."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from dfkd_core.errors import ConfigError

__all__ = ["autocast_on_gpu", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device; `auto` is the GPU where there is one.

    For a GPU it also asks cuDNN, for the whole process, for kernels that give the same bits each time, and for
    convolutions in float32 and not in TF32 where no autocast says otherwise, as on a CPU.

    Raises:
        ConfigError: A GPU is asked for that this machine does not have.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"execution.device is {name!r}, but {torch.cuda.device_count()} GPUs are visible. Use auto or cpu."
            )
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
    return device


def autocast_on_gpu(device: torch.device) -> AbstractContextManager[object]:
    """Return a bf16 autocast context on a GPU and one that does nothing elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
