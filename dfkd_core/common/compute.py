"""Where and how a piece of work computes; nothing in here changes a result beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dfkd_core.common.devices import resolve_device

__all__ = ["CPU", "Compute", "settled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A device, and what may be used of it."""

    device: torch.device | str = "cpu"
    """Where to compute: a device, or a name such as `auto` that `settled` resolves."""
    memory: int | None = None
    """Bytes that passes through a network may use; None takes the memory that is free."""
    prefetch: int = 0
    """Batches that a second thread loads, moves and labels ahead, about 2; 0 uses one thread."""


CPU = Compute()
"""One thread on the CPU, with the memory that is free."""


def settled(compute: Compute) -> Compute:
    """Return the same with a device of this machine in the place of its name.

    Raises:
        ConfigError: This machine has no such device.
    """
    return replace(compute, device=resolve_device(str(compute.device)))
