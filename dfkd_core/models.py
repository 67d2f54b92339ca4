"""A classifier together with what its user must know about it, and its form on disk.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfkd_core.digests import json_digest, tensors_digest, write_atomically, write_json
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.networks import build_network
from dfkd_core.seeding import derive_seed

__all__ = ["Classifier", "ModelCard", "build_classifier", "find_layer", "load_model", "model_digest", "save_model"]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What has to be known to use a classifier: its network, its input and its modelled layer."""

    network: str
    """Name of the network, see `dfkd_core.networks.network_names`."""
    in_channels: int
    """Channels c of an input image."""
    image_size: int
    """Height and width of an input image in pixels."""
    num_classes: int
    """Number of logits k."""
    mean: tuple[float, ...]
    """Mean of the pixel values in [0, 1], one per channel, subtracted from the input."""
    std: tuple[float, ...]
    """Standard deviation of the pixel values, one per channel, by which the input is divided."""
    layer: str
    """Module path of the layer whose feature space is modelled."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the logits; may be empty."""

    def __post_init__(self) -> None:
        """Check that the fields agree with each other."""
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_channels:
                raise ConfigError(f"{name} has {len(getattr(self, name))} values for {self.in_channels} channels")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"std must be greater than 0 in every channel, got {self.std}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(f"{len(self.class_names)} class names for {self.num_classes} classes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        return (self.in_channels, self.image_size, self.image_size)


class Classifier(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        """Wrap `network`, whose own input is the normalised image."""
        super().__init__()
        self.network = network
        self.card = card
        self.register_buffer("mean", torch.tensor(card.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Map float images [n, c, h, w] in [0, 1] to logits [n, k]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def build_classifier(card: ModelCard, *, seed: int) -> Classifier:
    """Build the card's network with weights drawn from `seed`, leaving the global generator as it was.

    Raises:
        ConfigError: The network is unknown or rejects the image size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init", card.network))
        network = build_network(
            card.network, in_channels=card.in_channels, image_size=card.image_size, num_classes=card.num_classes
        )
    classifier = Classifier(network, card)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return classifier


def find_layer(network: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`.

    Raises:
        TeacherError: There is none; the message lists the valid paths.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    if path not in modules:
        raise TeacherError(f"No layer {path!r} in the network. Its layers: {', '.join(modules)}. Set teacher.layer")
    layer: nn.Module = modules[path]
    return layer


def model_digest(classifier: Classifier) -> str:
    """Return a SHA-256 over the weights, the buffers and the card."""
    card = dataclasses.asdict(classifier.card)
    return json_digest({"card": card, "tensors": tensors_digest(classifier.network.state_dict())})


def save_model(folder: Path, classifier: Classifier) -> None:
    """Write `model.safetensors` and `config.json` into `folder`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    with write_atomically(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary)
    write_json(folder / CONFIG_FILE, classifier.card)


def load_model(folder: Path) -> Classifier:
    """Read a classifier that `save_model` wrote.

    Raises:
        TeacherError: A file is missing or corrupt, a weight is missing, unexpected, of the wrong shape or not finite.
    """
    classifier = build_classifier(_read_card(folder / CONFIG_FILE), seed=0)
    _load_weights(classifier.network, _read_weights(folder / WEIGHTS_FILE), folder)
    return classifier.eval()


def _read_card(path: Path) -> ModelCard:
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields.update({name: tuple(fields[name]) for name in ("mean", "std", "class_names") if name in fields})
        return ModelCard(**fields)
    except FileNotFoundError:
        raise TeacherError(f"No model in {path.parent}: {path.name} is missing. Make one with: dfkd run") from None
    except (ValueError, TypeError) as error:
        raise TeacherError(f"{path} does not describe a model: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise TeacherError(f"No weights in {path.parent}: {path.name} is missing. Make them with: dfkd run") from None
    except Exception as error:  # safetensors raises a class of its own that it does not export for typing
        raise TeacherError(f"{path} is not a whole safetensors file: {error}") from error


def _load_weights(network: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    expected = network.state_dict()
    faults = [f"missing {name}" for name in sorted(expected.keys() - weights.keys())]
    faults += [f"unexpected {name}" for name in sorted(weights.keys() - expected.keys())]
    for name in sorted(expected.keys() & weights.keys()):
        if expected[name].shape != weights[name].shape:
            faults.append(f"{name} is {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}")
        elif weights[name].is_floating_point() and not torch.isfinite(weights[name]).all():
            faults.append(f"{name} holds NaN or Inf")
    if faults:
        raise TeacherError(f"The weights in {folder} do not fit the network: {'; '.join(faults[:10])}")
    network.load_state_dict(weights)
