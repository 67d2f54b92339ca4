"""Checkpoints of a training run: named tensors and one record per epoch, written atomically, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfkd_core.common.digests import canonical_json, tensors_digest, write_atomically
from dfkd_core.errors import DistillationError
from dfkd_core.training.loop import EpochRecord

__all__ = [
    "CHECKPOINT_FORMAT",
    "Checkpoint",
    "load_optimizer",
    "optimizer_tensors",
    "read_checkpoint",
    "save_checkpoint",
]

CHECKPOINT_FORMAT = 3
# The rest of a checkpoint is JSON under one metadata key: safetensors writes several keys in a random order.
HEADER = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state from which a training run resumes."""

    parts: Mapping[str, Mapping[str, Tensor]]
    """Tensors by name of each part, for example `network` and `optimizer`; no part's name may contain a dot."""
    history: Sequence[EpochRecord]
    """One record per finished epoch."""


def save_checkpoint(path: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file, replaced if it exists.
        key: Digest of all inputs of the run; `read_checkpoint` accepts the file only with the same key.
        checkpoint: The state to write.

    Raises:
        DistillationError: The file cannot be written.
    """
    named = {f"{part}.{name}": value for part, tensors in checkpoint.parts.items() for name, value in tensors.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    header = {"key": key, "digest": tensors_digest(tensors), "history": list(checkpoint.history)}
    try:
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, {HEADER: canonical_json(header)})
    except (OSError, SafetensorError) as error:
        raise DistillationError(
            f"Cannot write the checkpoint {path}: {error}. The folder must be writable and the disk must have room; "
            "then run the same command again."
        ) from error


def read_checkpoint(path: Path, key: str) -> Checkpoint | None:
    """Return the checkpoint in `path`, or None if it is missing, damaged or of another key."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if tensors_digest(tensors) != header["digest"]:
            return None
        history = [EpochRecord(**fields) for fields in header["history"]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return Checkpoint(parts=parts, history=history)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by position of the parameter and name, for example `3.exp_avg`."""
    states = optimizer.state_dict()["state"].items()
    return {f"{place}.{name}": value for place, state in states for name, value in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors` into an optimizer of the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        position, _, field_name = name.partition(".")
        parameter = parameters[int(position)]
        # The fused kernels read parameter and state in parallel, so both need the same memory layout.
        fits = tensor.shape == parameter.shape
        value = torch.empty_like(parameter).copy_(tensor) if fits else tensor
        state.setdefault(int(position), {})[field_name] = value.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
