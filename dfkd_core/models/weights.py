"""Reading of weights from others: safetensors, or a state dict of `torch.save` in any of the usual wrappings.

Only tensors and plain containers are unpickled (`weights_only=True`).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from dfkd_core.common.archives import check_safetensors, open_regular, read_regular
from dfkd_core.errors import TeacherError
from dfkd_core.models.program_checks import check_saved

__all__ = ["FoundWeights", "fit_weights", "read_plain_file", "read_safetensors", "read_state", "state_faults"]

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
# Counters of BatchNorm and of averaged models that no output depends on.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_SHOWN_FAULTS = 8
_MISSING = "No weights file {path}. Correct teacher.source.weights"


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """The tensors of a file, and the alternatives in it."""

    state: dict[str, Tensor]
    """Tensors by name, floating-point ones in float32, on the CPU."""
    key: str
    """Key of the file that held them, empty if they were not wrapped."""
    others: tuple[str, ...]
    """Other keys that hold tensors, for example an averaged copy."""


def read_state(path: Path, *, key: str = "") -> FoundWeights:
    """Read a state dict.

    Args:
        path: `.safetensors`, or a file of `torch.save`.
        key: Key that holds the state dict in the file; if empty, the usual keys are tried, an averaged copy last.

    Raises:
        TeacherError: The file is missing, corrupt or not a state dict, holds a pickled module, or lacks the key.
    """
    content: Any = read_safetensors(path, missing=_MISSING) if path.suffix == ".safetensors" else read_plain_file(path)
    if not isinstance(content, Mapping):
        raise TeacherError(
            f"{path} holds a {type(content).__name__} , not a state dict. Save one with: "
            "torch.save(model.state_dict(), PATH)"
        )
    states: dict[Any, Mapping[Any, Any]] = {name: value for name, value in content.items() if _is_state(value)}
    if key:
        if key not in states:
            raise TeacherError(
                f"{path} has no state dict under {key!r}. It has: {', '.join(map(str, states)) or 'none'}. "
                "Correct teacher.source.weights_key"
            )
        return FoundWeights(_tensors(states[key]), key, tuple(sorted(map(str, states.keys() - {key}))))
    if _is_state(content):
        return FoundWeights(_tensors(content), "", ())
    for name in (*_WRAPPINGS, *_AVERAGES, *states):
        if name in states:
            return FoundWeights(_tensors(states[name]), str(name), tuple(sorted(map(str, states.keys() - {name}))))
    raise TeacherError(
        f"{path} holds no state dict; its keys: {', '.join(map(str, list(content)[:10])) or 'none'}. Save one with: "
        "torch.save(model.state_dict(), PATH)"
    )


def read_plain_file(path: Path) -> Any:
    """Read a file of `torch.save` that holds tensors and plain containers onto the CPU.

    Raises:
        TeacherError: It is missing, corrupt, could be read in two ways, or needs unpickling.
    """
    try:
        with open_regular(path) as stream:
            check_saved(stream)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TeacherError(_MISSING.format(path=path)) from None
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise TeacherError(
                f"{path} holds more than tensors ({_unsupported(error)}), and reading it would run code of its author. "
                "Request a state dict (torch.save(model.state_dict(), PATH)), or, if you trust the file as you "
                "would trust a program from the same source, pass it as the teacher itself with --trust-pickle"
            ) from None
        raise TeacherError(f"{path} is not a complete file of torch.save: {error}") from None
    except (EOFError, RuntimeError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TeacherError(f"{path} is not a complete file of torch.save: {error}. Copy it again") from None


def _unsupported(error: Exception) -> str:
    text = str(error)
    for start in ("Unsupported global: GLOBAL ", "Unsupported class "):
        if start in text:
            return text.split(start, 1)[1].split()[0]
    return "objects of other classes"


def read_safetensors(path: Path, *, missing: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name.

    Args:
        path: The file.
        missing: Message for a missing file; `{path}` is replaced by the path.

    Raises:
        TeacherError: The file is missing, corrupt or could be read in two ways.
    """
    try:
        content = read_regular(path)
        header = check_safetensors(io.BytesIO(content))
        tensors = load(content)
        # The library returns them in any order, and the last matrix tells the number of classes.
        return {name: tensors[name] for name in header.names}
    except FileNotFoundError:
        raise TeacherError(missing.format(path=path)) from None
    except Exception as error:  # safetensors raises a class that it does not export for typing
        raise TeacherError(f"{path} is not a complete safetensors file: {error}. Copy it again") from error


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    tensors = [item for item in value.values() if isinstance(item, Tensor)]
    # Some savers keep numbers next to the tensors.
    return len(tensors) >= max(1, len(value) // 2)


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    found = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def fit_weights(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the network's names, without the prefixes that wrappers add.

    Such prefixes are `module.` of DataParallel, `model.` of training frameworks and `_orig_mod.` of torch.compile. The
    one whose removal makes the most names fit is removed. Tensors without it are left out.
    """
    expected = network.state_dict()
    best = max(_without_prefixes(dict(state)), key=lambda names: len(expected.keys() & names.keys()))
    fitting = {name: tensor for name, tensor in best.items() if name.rpartition(".")[2] not in _COUNTERS}
    kept = {name: t for name, t in expected.items() if name.rpartition(".")[2] in _COUNTERS}
    return fitting | kept


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the state unchanged, and without each prefix found in its first names, or in pairs of them."""
    yield state
    for _ in range(3):
        firsts = {name.partition(".")[0] for name in state if "." in name}
        inner = [
            {n.removeprefix(f"{first}."): t for n, t in state.items() if n.startswith(f"{first}.")} for first in firsts
        ]
        if not inner:
            return
        yield from inner
        state = max(inner, key=len)


def state_faults(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return why a state dict does not fit this network: missing, unexpected, wrongly shaped or not finite tensors."""
    expected = network.state_dict()
    faults = _listed("missing", sorted(expected.keys() - state.keys()))
    faults += _listed("unexpected", sorted(state.keys() - expected.keys()))
    both = sorted(expected.keys() & state.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in both
        if state[name].shape != expected[name].shape
    ]
    faults += _listed("wrongly shaped", shapes)
    is_bad = [n for n in both if state[n].is_floating_point() and not torch.isfinite(state[n]).all()]
    return faults + _listed("NaN or Inf in", is_bad)


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN_FAULTS} more" if len(names) > _SHOWN_FAULTS else ""
    return [f"{what}: {', '.join(names[:_SHOWN_FAULTS])}{more}"]
