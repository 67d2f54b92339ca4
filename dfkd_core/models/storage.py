"""A classifier on disk: its card, and its weights or its program."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dfkd_core.common.digests import file_sha256, json_digest, tensors_digest, write_atomically, write_json
from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.programs import PROGRAM_FILES, load_program
from dfkd_core.models.weights import read_safetensors, state_faults

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "load_model", "model_digest", "read_card", "save_model"]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def model_digest(classifier: Classifier) -> str:
    """Return a SHA-256 over the weights, the buffers and the card."""
    card = dataclasses.asdict(classifier.card)
    return json_digest({"card": card, "tensors": tensors_digest(classifier.network.state_dict())})


def save_model(folder: Path, classifier: Classifier) -> None:
    """Write `config.json` and `model.safetensors`, or the program that the network was read from, into `folder`.

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


def load_model(folder: Path) -> Classifier:
    """Read a classifier that `save_model` wrote.

    Raises:
        TeacherError: A file is missing or corrupt, a weight is missing, unexpected, of the wrong shape or not finite.
        ConfigError: The package that builds the network is missing.

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
        return _load_program(folder / PROGRAM_FILES[card.network], card).eval()
    classifier = build_classifier(card, seed=0)
    missing = "No weights {path}. Make them with: dfkd run"
    weights = read_safetensors(folder / WEIGHTS_FILE, missing=missing)
    if faults := state_faults(classifier.network, weights):
        raise TeacherError(f"The weights in {folder} do not fit the network: {'; '.join(faults)}")
    classifier.network.load_state_dict(weights)
    return classifier.eval()


def _load_program(path: Path, card: ModelCard) -> Classifier:
    program = load_program(path, card.network)  # type: ignore[arg-type]  # a key of PROGRAM_FILES
    found = file_sha256(path)
    if card.program_sha256 != found:
        raise TeacherError(
            f"{path} has changed (sha256 {found}, its config.json has {card.program_sha256}). Make it with: dfkd run"
        )
    return Classifier(program.network, card, program=path)


def read_card(folder: Path) -> ModelCard:
    """Read the card that `save_model` wrote, without the weights.

    Raises:
        TeacherError: The file is missing or does not describe a model.
    """
    path = folder / CONFIG_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields.update({name: tuple(fields[name]) for name in ("mean", "std", "class_names") if name in fields})
        return ModelCard(**fields)
    except FileNotFoundError:
        raise TeacherError(f"No model in {path.parent}: {path.name} is missing. Make one with: dfkd run") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise TeacherError(f"{path} does not describe a model: {error}") from error
