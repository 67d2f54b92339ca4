"""A classifier on disk: its card, and its weights or its program."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dfkd_core.common.digests import json_digest, tensors_digest, write_atomically, write_json
from dfkd_core.common.json_files import parse_json
from dfkd_core.common.regular_files import read_regular
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.architectures import architecture_fault, argument_fault, is_plain_name
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.factories import allows
from dfkd_core.models.limits import limited
from dfkd_core.models.programs import PROGRAM_FILES, load_program
from dfkd_core.models.weights import read_safetensors, state_faults

__all__ = ["CONFIG_FILE", "TIMM_FIELDS", "WEIGHTS_FILE", "load_model", "model_digest", "read_card", "save_model"]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TIMM_FIELDS = ("architecture", "model_args", "pretrained_cfg")
"""Further fields of config.json in an export, which timm reads and dfkd does not."""

_LARGEST = {"in_channels": 10_000, "image_size": 16_384, "num_classes": 10_000_000}
# Pixel values, after division by 255 or not.
_LARGEST_PIXEL = 10**6
_LARGEST_ARGUMENT = 100_000
_AGAIN = "Copy the folder again, or make it with: dfkd run"
# Files in which other packages keep the weights of a folder.
_OTHER_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin", "open_clip_model.safetensors")


def model_digest(classifier: Classifier) -> str:
    """Return a SHA-256 over the weights, the buffers and the card."""
    card = dataclasses.asdict(classifier.card)
    return json_digest({"card": card, "tensors": tensors_digest(classifier.network.state_dict())})


def save_model(folder: Path, classifier: Classifier) -> None:
    """Write `config.json` and `model.safetensors`, or the program that the network was read from, into `folder`.

    Raises:
        ConfigError: No name builds the network again, since it was made in memory.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dfkd_core import ModelCard, build_classifier, save_model
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     save_model(Path(folder), build_classifier(card, seed=0))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['config.json', 'model.safetensors']
    """
    if classifier.program is None and architecture_fault(classifier.card.network):
        raise ConfigError(
            f"The network is {classifier.card.network!r}, and a model folder stores the name that builds it again. "
            "Load it by name, bring_teacher(SourceConfig(model='package.module:factory', weights=...)), or write it as "
            "a program: export_model(..., formats=('pt2', 'onnx'))"
        )
    if classifier.program is not None:
        with write_atomically(folder / PROGRAM_FILES[classifier.card.network]) as temporary:
            shutil.copyfile(classifier.program, temporary)
    else:
        state = _unshared(classifier.network.state_dict())
        with write_atomically(folder / WEIGHTS_FILE) as temporary:
            save_file(state, temporary)
    write_json(folder / CONFIG_FILE, classifier.card)


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the form that safetensors takes: contiguous on the CPU, tied ones as copies."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        kept = tensor.detach().cpu().contiguous()
        storage = kept.untyped_storage().data_ptr()
        found[name] = kept.clone() if storage in seen else kept
        seen.add(storage)
    return found


def load_model(folder: Path, *, trusted_factories: Collection[str] = ()) -> Classifier:
    """Read a classifier that `save_model` wrote.

    Networks of dfkd, torchvision and timm are built as they are. A folder that names a factory of somebody's own code
    is refused, before anything of it is imported, unless the factory is trusted.

    Args:
        folder: Folder with config.json, and model.safetensors or a program.
        trusted_factories: Names `module:function` that the folder may use, for example that of your own network.

    Raises:
        TeacherError: A file is missing or corrupt, the folder names a factory that is not trusted or makes a package
            load files, or a weight is missing, unexpected, of the wrong shape or not finite.
        ConfigError: The network cannot be built, or the package that builds it is missing.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dfkd_core import ModelCard, build_classifier, load_model, save_model
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     save_model(Path(folder), build_classifier(card, seed=0))
        ...     load_model(Path(folder)).card == card
        True
    """
    card = read_card(folder)
    if card.network in PROGRAM_FILES:
        path = folder / PROGRAM_FILES[card.network]
        program = load_program(path, card.network, sha256=card.program_sha256)  # type: ignore[arg-type]  # a key
        return Classifier(program.network, card, program=path).eval()
    _check_trust(folder, card, trusted_factories)
    missing = "No weights {path}. Make them with: dfkd run"
    weights = read_safetensors(folder / WEIGHTS_FILE, missing=missing, remedy=_AGAIN)
    classifier = _build(folder, card, weights)
    if faults := state_faults(classifier.network, weights):
        raise TeacherError(f"The weights in {folder} do not fit the network: {'; '.join(faults)}. {_AGAIN}")
    classifier.network.load_state_dict(weights)
    return classifier.eval()


def _check_trust(folder: Path, card: ModelCard, trusted: Collection[str]) -> None:
    """Check that building the card's network runs no code and loads no file that nobody has allowed."""
    path, name = folder / CONFIG_FILE, card.network
    if fault := argument_fault(name, card.arguments):
        raise TeacherError(f"{path}: {fault}. Make the folder again with: dfkd run")
    if is_plain_name(name):
        if large := next(_large_numbers(card.arguments), None):
            raise TeacherError(f"{path} is refused: {large:,} in its arguments is above {_LARGEST_ARGUMENT:,}")
    elif fault := architecture_fault(name):
        raise TeacherError(f"{path}: {fault}")
    elif not allows(trusted, name):
        raise TeacherError(
            f"{folder} names the network {name}, and building it would run code, or load files, that are neither "
            "dfkd's nor a known package's; nothing of it was imported. If you trust its maker as you would trust the "
            f"maker of a program, allow it with --trust-factory {name}, or in Python with load_model(folder, "
            f"trusted_factories=[{name!r}]). Otherwise request the network as a program, .pt2 or ONNX"
        )


def _large_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _large_numbers(item)


def _build(folder: Path, card: ModelCard, weights: Mapping[str, Tensor]) -> Classifier:
    """Build the card's network; one of a package may not be much larger than its weights."""
    if not is_plain_name(card.network):
        return build_classifier(card, seed=0)
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    with limited(num_bytes, len(weights), what=f"The network that {folder / CONFIG_FILE} describes"):
        return build_classifier(card, seed=0)


def read_card(folder: Path) -> ModelCard:
    """Read the card that `save_model` wrote, without the weights.

    Raises:
        TeacherError: The file is missing, is of another package, or does not describe a model.
    """
    path = folder / CONFIG_FILE
    try:
        fields = parse_json(read_regular(path))
        if not isinstance(fields, dict):
            raise ValueError("it is no JSON object")
        if "network" not in fields:
            raise TeacherError(_of_another_package(folder, fields))
        return ModelCard(**_checked(fields))
    except (FileNotFoundError, NotADirectoryError):
        raise TeacherError(f"No model in {path.parent}: {path.name} is missing. Make one with: dfkd run") from None
    except (OSError, ValueError) as error:
        raise TeacherError(f"{path} does not describe a model: {error}. {_AGAIN}") from error


def _of_another_package(folder: Path, fields: Mapping[str, Any]) -> str:
    weights = next((folder / name for name in _OTHER_WEIGHTS if (folder / name).is_file()), folder / WEIGHTS_FILE)
    named = fields.get("architecture")
    source = f"timm:{named}" if isinstance(named, str) else "SOURCE"
    known = fields.get("architectures") or fields.get("model_type") or named
    what = f" ({', '.join(map(str, known)) if isinstance(known, list) else known})" if known else ""
    return (
        f"{folder} is a model folder of another package{what}: its {CONFIG_FILE} has no field network. Name the "
        f"architecture and the weights, where SOURCE is timm:NAME, torchvision:NAME or package.module:factory: "
        f"--teacher {source} --weights {weights}"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) and abs(item) <= _LARGEST_PIXEL for item in value)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("network", "layer", "outputs", "output_key", "program_sha256"), (_is_text, "a text")),
    **dict.fromkeys(("in_channels", "image_size", "num_classes"), (_is_size, "an integer above 0")),
    **dict.fromkeys(("mean", "std"), (_are_numbers, f"a list of numbers up to {_LARGEST_PIXEL:,}")),
    "class_names": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of texts"),
    "arguments": (lambda value: isinstance(value, dict), "an object"),
    "channels_last": (lambda value: isinstance(value, bool), "true or false"),
}
_REQUIRED = {"network", "in_channels", "image_size", "num_classes", "mean", "std", "layer"}


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a card from JSON.

    Raises:
        ValueError: One is missing, unknown, of the wrong type or too large.
    """
    fields = {name: value for name, value in fields.items() if name not in TIMM_FIELDS}
    if unknown := sorted(fields.keys() - _KINDS.keys()):
        raise ValueError(f"unknown fields {', '.join(unknown)}; known: {', '.join(_KINDS)}")
    if missing := sorted(_REQUIRED - fields.keys()):
        raise ValueError(f"the fields {', '.join(missing)} are missing")
    for name, value in fields.items():
        is_right, kind = _KINDS[name]
        if not is_right(value):
            raise ValueError(f"{name} must be {kind}, got {str(value)[:60]!r}")
        if name in _LARGEST and value > _LARGEST[name]:
            raise ValueError(f"{name} must be at most {_LARGEST[name]:,}, got {value:,}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
