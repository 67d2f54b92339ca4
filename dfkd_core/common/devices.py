"""Choice of the device to compute on."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from dfkd_core.errors import ConfigError

__all__ = ["autocast_on_gpu", "resolve_device"]

_NO_DEVICE = "execution.device is {!r}; it must be auto, cpu, cuda or cuda:N"


def resolve_device(name: str) -> torch.device:
    """Convert `auto`, `cpu`, `cuda` or `cuda:1` into a device; `auto` is the GPU if the machine has one.

    For a GPU it also sets cuDNN, for the whole process, to kernels that return the same bits each time, and to
    convolutions in float32 instead of TF32 outside autocast, as on a CPU.

    Raises:
        ConfigError: The name is no device, or a GPU that this machine does not have.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ConfigError(_NO_DEVICE.format(name)) from None
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(_NO_DEVICE.format(name))
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
