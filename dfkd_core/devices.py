"""Which device to compute on."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from dfkd_core.errors import ConfigError

__all__ = ["autocast_on_gpu", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device; `auto` is the GPU where there is one.

    Raises:
        ConfigError: A GPU is asked for that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"execution.device is {name!r}, but {torch.cuda.device_count()} GPUs are visible. Use auto or cpu."
        )
    return device


def autocast_on_gpu(device: torch.device) -> AbstractContextManager[object]:
    """Return a bf16 autocast context on a GPU and one that does nothing elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
