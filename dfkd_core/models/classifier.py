"""A classifier together with the facts needed to use it, and its form on disk.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dfkd_core.common.class_names import class_names_fault
from dfkd_core.common.pixels import grey_images
from dfkd_core.common.seeding import derive_seed
from dfkd_core.errors import ConfigError, TeacherError, first_line
from dfkd_core.models.architectures import build_architecture
from dfkd_core.models.built_in import default_layer, is_built_in
from dfkd_core.models.layers import find_modelled_layer, forward_with_outputs
from dfkd_core.models.outputs import OutputKind, find_output_key, select_output, to_logits

__all__ = [
    "Classifier",
    "ModelCard",
    "build_classifier",
    "copy_network",
    "describe",
    "in_memory_format",
    "output_shape",
]

# Channels that oneDNN processes at once with AVX-512; fewer with AVX2.
_WHOLE_BLOCK = 16

_PixelKey = tuple[tuple[int, ...], torch.device, torch.memory_format]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The facts needed to use a classifier: its network, its input and its modelled layer.

    Example:
        >>> from dfkd_core import ModelCard
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> card.image_shape
        (1, 32, 32)
    """

    network: str
    """Name of the network (`dfkd_core.models.architectures`), or kind of a program (`dfkd_core.models.programs`)."""
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
    """Address of the layer whose feature space is modelled, see `dfkd_core.models.layers`."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the logits; may be empty."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that the network is built with."""
    outputs: OutputKind = "logits"
    """Kind of the network's output: logits, probabilities or a binary output."""
    output_key: str = ""
    """Index or key of the output in a tuple or a mapping; empty for a network that returns a tensor."""
    program_sha256: str = ""
    """SHA-256 of the program's file, if the network is a program."""
    channels_last: bool = True
    """Whether the network accepts the channels-last memory format, several times as fast on a CPU; a network whose
    forward calls `view` on maps does not."""

    def __post_init__(self) -> None:
        """Check that the fields agree."""
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_channels:
                raise ConfigError(f"{name} has {len(getattr(self, name))} values for {self.in_channels} channels")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"std must be greater than 0 in every channel, got {self.std}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(f"{len(self.class_names)} class names for {self.num_classes} classes")
        if fault := class_names_fault(self.class_names):
            raise ConfigError(f"class_names: {fault}. Give each class a name of its own, or leave the names out")
        if self.outputs not in get_args(OutputKind):
            raise ConfigError(f"outputs must be one of {', '.join(get_args(OutputKind))}, got {self.outputs!r}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        return (self.in_channels, self.image_size, self.image_size)

    @property
    def class_labels(self) -> tuple[str, ...]:
        """Names of the k classes; their numbers if they have none."""
        return self.class_names or tuple(map(str, range(self.num_classes)))


class Classifier(nn.Module):
    """A network that takes images in [0, 1], normalises them and returns logits.

    Example:
        >>> import torch
        >>> from dfkd_core import ModelCard, build_classifier
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> classifier = build_classifier(card, seed=0)
        >>> classifier(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, network: nn.Module, card: ModelCard, *, program: Path | None = None) -> None:
        """Wrap `network`, whose input is the normalised image.

        Args:
            network: Not changed; only its `forward` with one argument is called.
            card: Its input, its output and its modelled layer.
            program: The file that the network was read from, if it is a program; `save_model` copies it.
        """
        super().__init__()
        self.network = network
        self.card = card
        self.program = program
        self.training_key: str | None = None
        """Key of the output in training mode if a check has found it; None takes the usual one."""
        self.register_buffer("mean", torch.tensor(card.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self._pixel_constants: tuple[_PixelKey, Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Map float images [n, c, h, w] in [0, 1] to logits [n, k]."""
        answer = self.answer(images)
        return to_logits(select_output(answer, self._output_key(answer)), self.card.outputs)

    def answer(self, images: Tensor) -> Any:
        """Return what the network returns for images [n, c, h, w] in [0, 1]: a tensor, or several in a container.

        Raises:
            TeacherError: The network's code ends the program.
        """
        try:
            return self.network(self.normalise(images))
        except SystemExit as error:
            raise TeacherError(f"The network {self.card.network} cannot be used: {first_line(error)}") from error

    def _output_key(self, answer: Any) -> str:
        # In training, some networks return the outputs of auxiliary heads too.
        if self.training and self.training_key is not None:
            return self.training_key
        return self.card.output_key or (find_output_key(answer) if self.training else "")

    def normalise(self, images: Tensor) -> Tensor:
        """Return the network's input for images [n, c, h, w] in [0, 1]."""
        mean, std = self._constants(images)
        normalised: Tensor = (images - mean).div_(std)
        # With one channel both layouts are contiguous, and a convolution decides by the strides: a copy sets them.
        return normalised if self.card.channels_last else normalised.clone(memory_format=torch.contiguous_format)

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation for every pixel of an image, [1, c, h, w], in the images' memory layout.

        The numbers equal one per channel, but broadcasting those is several times as slow on a CPU.
        """
        layouts = (torch.channels_last, torch.contiguous_format)
        layout = next((layout for layout in layouts if images.is_contiguous(memory_format=layout)), None)
        if layout is None or torch.compiler.is_exporting():
            return self.mean, self.std
        key = (tuple(images.shape[1:]), images.device, layout)
        if self._pixel_constants is None or self._pixel_constants[0] != key:
            # A tensor made in inference mode could not be used if a gradient is needed later.
            with torch.inference_mode(False):
                mean, std = (
                    values.expand(1, *key[0]).to(images.device).contiguous(memory_format=layout)
                    for values in (self.mean, self.std)
                )
            self._pixel_constants = (key, mean, std)
        return self._pixel_constants[1:]


def build_classifier(card: ModelCard, *, seed: int) -> Classifier:
    """Build the card's network with weights drawn from `seed`, without changing the state of the global generator.

    Args:
        card: The network to build. If `layer` is empty, `layer` and `channels_last` are detected.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: The network is unknown, cannot be built or rejects the image size.

    Example:
        >>> from dfkd_core import ModelCard, build_classifier
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> classifier = build_classifier(card, seed=0)
        >>> sum(weight.numel() for weight in classifier.parameters())
        61706
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init", card.network))
        network = build_architecture(
            card.network,
            in_channels=card.in_channels,
            image_size=card.image_size,
            num_classes=card.num_classes,
            arguments=card.arguments,
        )
    classifier = Classifier(network, card)
    if not card.layer:
        describe(classifier)
    return in_memory_format(classifier)


def in_memory_format(classifier: Classifier) -> Classifier:
    """Lay the weights out in the memory format of the card, in place, and return the classifier."""
    if classifier.card.channels_last:
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return classifier


def copy_network(network: nn.Module) -> nn.Module:
    """Return a copy of a network that shares no tensor with it.

    Raises:
        ConfigError: It holds an object that cannot be copied, such as a lock or an open file.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # of any object in the network
        raise ConfigError(
            f"The network {type(network).__name__} cannot be copied: {first_line(error)}. Keep locks, open files and "
            "results of computations out of its attributes, or give it a method __deepcopy__"
        ) from error


def describe(classifier: Classifier) -> None:
    """Detect the modelled layer and whether channels may come last, and store both in the classifier's card.

    Raises:
        ConfigError: The network rejects the card's images, or cannot be copied.
    """
    card = classifier.card
    if is_built_in(card.network):
        classifier.card = dataclasses.replace(card, layer=default_layer(card.network), channels_last=True)
        return
    is_training = classifier.training
    images = grey_images(2, card.image_shape)
    classifier.card = dataclasses.replace(card, channels_last=False)
    try:
        layer = find_modelled_layer(classifier.eval(), images)
        channels_last = classifier.program is None and _takes_channels_last(classifier)
    except ConfigError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"{card.network} rejects images of shape {card.image_shape}: {error}") from error
    finally:
        classifier.train(is_training)
    classifier.card = dataclasses.replace(card, layer=layer, channels_last=channels_last)


@torch.no_grad()
def _takes_channels_last(classifier: Classifier) -> bool:
    if any(_is_written_past(module) for module in classifier.network.modules()):
        return False
    card, network = classifier.card, copy_network(classifier.network)
    trial = in_memory_format(Classifier(network, dataclasses.replace(card, channels_last=True)).eval())
    images = grey_images(2, card.image_shape).contiguous(memory_format=torch.channels_last)
    try:
        trial(images)
    except RuntimeError:
        return False
    return True


def _is_written_past(module: nn.Module) -> bool:
    """Return whether oneDNN writes the gradient of a layer past its memory (its issue 6035) if channels come last."""
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.stride == (1, 1):
        return False
    return module.in_channels // module.groups < _WHOLE_BLOCK


@torch.no_grad()
def output_shape(classifier: Classifier, address: str) -> tuple[int, ...]:
    """Return the shape of the value at a layer's address for one image; empty if it cannot be read or is no tensor.

    The classifier is not changed: the probe runs in eval mode, since BatchNorm would otherwise update its statistics.
    """
    is_training = classifier.training
    images = grey_images(2, classifier.card.image_shape, classifier.mean.device)
    try:
        _, (output,) = forward_with_outputs(classifier.eval(), [address], images)
    except TeacherError:
        return ()
    finally:
        classifier.train(is_training)
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
