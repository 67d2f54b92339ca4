"""The device and the resources of a computation; nothing here changes a result beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dfkd_core.common.devices import resolve_device
from dfkd_core.errors import ConfigError

__all__ = ["CPU", "Compute", "settled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A device, and the resources that may be used on it."""

    device: torch.device | str = "cpu"
    """Device to compute on, or a name such as `auto` that `settled` resolves."""
    memory: int | None = None
    """Bytes that passes through a network may use; None for the free memory."""
    prefetch: int = 0
    """Batches that a second thread loads, moves and labels ahead, about 2; 0 uses one thread."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.prefetch < 0 or (self.memory is not None and self.memory < 1):
            raise ConfigError(
                f"prefetch must be 0 or more and memory 1 byte or more, got {self.prefetch}, {self.memory}"
            )


CPU = Compute()
"""One thread on the CPU, with the free memory."""


def settled(compute: Compute) -> Compute:
    """Return the same settings with the device's name replaced by a device of this machine.

    Raises:
        ConfigError: The machine has no such device.
    """
    return replace(compute, device=resolve_device(str(compute.device)))
