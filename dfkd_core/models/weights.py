"""Reading of weights from others: safetensors, or a state dict of `torch.save` in any of the usual wrappings.

No code of the file's author runs, unless the user trusts the file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from dfkd_core.common.archives import check_safetensors
from dfkd_core.common.inner_files import file_fault, whole_folder
from dfkd_core.common.json_files import read_json_object
from dfkd_core.common.regular_files import read_regular
from dfkd_core.errors import TeacherError
from dfkd_core.models.pickles import attributes_of, more_than_tensors, read_plain_file, unpickle

__all__ = ["FoundWeights", "read_safetensors", "read_state", "state_faults", "weight_files"]

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
_ORDER = (*_WRAPPINGS, *_AVERAGES)
# The states of an optimizer and of a generator contain tensors too.
_NO_WEIGHTS = re.compile(r"(?i)optim|sched|scaler|callbacks|loops|rng")
_DEPTH = 4
_INDEX = ".index.json"
_FOLDER_FILES = (
    f"model.safetensors{_INDEX}",
    "model.safetensors",
    f"pytorch_model.bin{_INDEX}",
    "pytorch_model.bin",
)
_OTHER_FORMATS = (".h5", ".hdf5", ".keras", ".tflite", ".pb", ".npz", ".npy", ".gguf", ".msgpack", ".onnx", ".pt2")
_SHOWN_FAULTS = 8
_MISSING = "No weights file {path}. Correct teacher.source.weights"
_SAVE = "Save one with: torch.save(model.state_dict(), PATH)"


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """The tensors of a file, and the alternatives in it."""

    state: dict[str, Tensor]
    """Tensors by name, floating-point ones in float32, on the CPU; a list of tensors has the names `0`, `1`, ..."""
    key: str
    """Key of the file that held them, with dots if it is nested; empty if they were not wrapped."""
    others: tuple[str, ...]
    """Other keys that hold tensors, for example an averaged copy."""
    unread: tuple[str, ...] = ()
    """Classes of objects in the file that were not read."""
    unions: tuple[dict[str, Tensor], ...] = ()
    """The tensors of all state dicts next to the chosen one, with their keys as prefixes and, if no name is there
    twice, without: for networks whose parts were saved one by one."""


def read_state(path: Path, *, key: str = "", trust_pickle: bool = False) -> FoundWeights:
    """Read a state dict.

    Args:
        path: `.safetensors`, a file of `torch.save`, the index of a model in several files (`.index.json`), or a folder
            with one of these under its usual name.
        key: Key that holds the state dict in the file; if empty, the usual keys are tried, an averaged copy last.
        trust_pickle: Whether code in the file may run if its weights cannot be read otherwise.

    Raises:
        TeacherError: The file is missing, corrupt or not a state dict, or lacks the key; its weights are quantised; or
            they are inside objects of other classes and `trust_pickle` is false.
    """
    path = _main_file(path)
    unread: tuple[str, ...] = ()
    try:
        content, unread = _content(path)
        states = dict(_states(content))
    except TeacherError:
        if not trust_pickle:
            raise
        content, states = None, {}
    if trust_pickle and not states:
        content, unread = unpickle(path), ()
        states = dict(_states(content))
    if not states and unread:
        raise TeacherError(more_than_tensors(path, list(unread)))
    if not states:
        raise TeacherError(f"{path} holds {_description(content)}. {_SAVE}")
    found = key or _likeliest(states)
    if found not in states:
        raise TeacherError(
            f"{path} has no state dict under {key!r}. It has: {', '.join(_offered(states)) or 'none'}. "
            "Correct teacher.source.weights_key"
        )
    others = tuple(sorted(set(_offered(states)) - {found}))
    unions = () if key else tuple(_unions(states, found, path))
    return FoundWeights(_tensors(states[found], path), found, others, unread, unions)


def _unions(states: Mapping[str, Mapping[Any, Any]], found: str, path: Path) -> Iterator[dict[str, Tensor]]:
    """Yield the unions of the state dicts next to the one under the key `found`."""
    parent, _, _ = found.rpartition(".")
    keys = [key for key in _offered(states) if key.rpartition(".")[0] == parent]
    if len(keys) < 2:
        return
    try:
        parts = {key.rpartition(".")[2]: _tensors(states[key], path) for key in keys}
    except TeacherError:  # a part that is not needed may be quantised
        return
    yield {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    merged = {name: tensor for state in parts.values() for name, tensor in state.items()}
    if len(merged) == sum(map(len, parts.values())):
        yield merged


def weight_files(path: Path) -> list[Path]:
    """Return the files that the weights consist of: the file itself and, after an index, the parts that it names.

    Raises:
        TeacherError: It is missing, or an index is damaged or names a file in another folder.
    """
    path = _main_file(path)
    return [path, *(_parts(path) if path.name.endswith(_INDEX) else ())]


def _main_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise TeacherError(
        f"The folder {path} has none of {', '.join(_FOLDER_FILES)}. Set teacher.source.weights to a file"
    )


def _parts(index: Path) -> list[Path]:
    """Return the files that an index names, each in its own folder or, by a link, in the same cache of Hugging Face."""
    try:
        names = sorted({str(name) for name in read_json_object(index)["weight_map"].values()})
    except FileNotFoundError:
        raise TeacherError(_MISSING.format(path=index)) from None
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise TeacherError(f"{index} is no index of weights in several files: {error}. Copy it again") from None
    outside = [name for name in names if name in ("", ".", "..") or re.search(r"[/\\]", name)]
    if outside:
        raise TeacherError(f"{index} names the file {outside[0]!r}; its files must be in the same folder")
    parts = [index.parent / name for name in names]
    # A missing part is reported when it is read.
    for part in filter(Path.exists, parts):
        if fault := file_fault(part, whole_folder(index.parent)):
            raise TeacherError(f"{part} {fault}. Copy the file itself into the folder")
    return parts


def _content(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return what a file holds, and the classes of objects that were not read."""
    # Opening a pipe would wait for ever.
    if path.exists() and not path.is_file():
        raise TeacherError(f"{path} is not a regular file. Correct teacher.source.weights")
    if path.name.endswith(_INDEX):
        state: dict[str, Any] = {}
        for part in _parts(path):
            state |= _content(part)[0]
        return state, ()
    if path.suffix == ".safetensors":
        return read_safetensors(path, missing=_MISSING), ()
    if path.suffix in _OTHER_FORMATS and path.is_file():
        raise TeacherError(
            f"{path} is not a file of PyTorch weights. Load the weights in PyTorch and save them with: "
            "torch.save(model.state_dict(), PATH)"
        )
    plain = read_plain_file(path)
    return plain.value, plain.replaced


def read_safetensors(path: Path, *, missing: str, remedy: str = "Copy it again") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name.

    Args:
        path: The file.
        missing: Message for a missing file; `{path}` is replaced by the path.
        remedy: What to do about a damaged file.

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
        raise TeacherError(f"{path} is not a complete safetensors file: {error}. {remedy}") from error


def _states(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the state dicts in a content by their dotted key; the content itself has an empty one."""
    key, parts = ".".join(place), attributes_of(content)
    if isinstance(content, nn.Module):
        yield key, content.state_dict()
    elif "_modules" in parts:
        yield key, dict(_module_state(parts))
    elif isinstance(content, (list, tuple)):
        if content and all(isinstance(item, Tensor) for item in content):
            yield key, dict(enumerate(content))
    elif isinstance(content, Mapping):
        if _is_state(content):
            yield key, content
        for name, value in (*content.items(), *parts.items()):
            if isinstance(name, (str, int)) and len(place) < _DEPTH:
                yield from _states(value, (*place, str(name)))


def _module_state(parts: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the state dict of a module whose attributes were read without its class."""
    hidden = parts.get("_non_persistent_buffers_set", ())
    for name, value in (*dict(parts.get("_parameters", {})).items(), *dict(parts.get("_buffers", {})).items()):
        if isinstance(value, Tensor) and name not in hidden:
            yield name, value
    for name, module in dict(parts["_modules"]).items():
        if "_modules" in (inner := attributes_of(module)):
            yield from ((f"{name}.{rest}", tensor) for rest, tensor in _module_state(inner))


def _is_state(value: Mapping[Any, Any]) -> bool:
    tensors = _count(value)
    # Some savers keep numbers next to the tensors.
    return bool(value) and tensors >= max(1, len(value) // 2)


def _count(state: Mapping[Any, Any]) -> int:
    return sum(isinstance(item, Tensor) for item in state.values())


def _offered(states: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """Return the keys to choose from, without the state of an optimizer."""
    return [key for key in states if key and not _NO_WEIGHTS.search(key)]


def _likeliest(states: Mapping[str, Mapping[Any, Any]]) -> str:
    """Return the key of the weights: of those with many tensors the usual name, the least nested, the first."""
    likely = [key for key in states if not _NO_WEIGHTS.search(key)] or list(states)
    most = max(_count(states[key]) for key in likely)
    # Single tensors next to a state dict, such as the state of a generator, are not the weights.
    keys = [key for key in likely if _count(states[key]) >= (most / 2 if key else most)]
    names = [key.rpartition(".")[2] for key in keys]
    ranks = [_ORDER.index(name) if name in _ORDER else len(_ORDER) * (name != "") for name in names]
    return min(zip(ranks, (key.count(".") for key in keys), range(len(keys)), keys))[-1]


def _tensors(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    found = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    quantised = [name for name, value in found.items() if value.is_quantized]
    if quantised:
        raise TeacherError(
            f"{path} holds quantised tensors ({', '.join(quantised[:3])}). Use the weights before quantisation"
        )
    if empty := [name for name, value in found.items() if value.is_meta]:
        raise TeacherError(f"{path} holds tensors without data ({', '.join(empty[:3])}). Save the loaded network again")
    dense = {name: value if value.layout == torch.strided else value.to_dense() for name, value in found.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in dense.items()}


def _description(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"no state dict; its keys: {', '.join(map(str, list(content)[:10])) or 'none'}"
    return f"a {type(content).__name__}, not a state dict"


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
