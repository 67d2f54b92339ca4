"""The frozen network to be compressed, with access to one modelled layer.

n images, c channels, h height, w width, d units of the modelled layer, k classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.common.compute import CPU, Compute, settled
from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import TeacherError
from dfkd_core.models.access import Access, Side
from dfkd_core.models.classifier import Classifier, ModelCard, output_shape
from dfkd_core.models.layers import (
    OUTPUT,
    BatchNorm,
    forward_with_outputs,
    layers_of,
    parse_layer,
    recorded,
    replaced,
    rest_fault,
    watched,
    weight_of,
)
from dfkd_core.models.merging import merge_batch_norm
from dfkd_core.models.passes import PassSizes, joined
from dfkd_core.models.storage import load_model, model_digest

__all__ = ["Teacher", "load_teacher"]


@dataclass(frozen=True, slots=True)
class _Trace:
    """Leaf modules in the order in which they ran, split at the output of the modelled layer."""

    before: tuple[nn.Module, ...]
    after: tuple[nn.Module, ...]
    features_shape: tuple[int, ...]


class Teacher:
    """A classifier frozen in eval mode: logits, features of one layer, and the rest of the network after it.

    The network is not changed: hooks at its address read and write the layer. Gradients flow to the images and never to
    the weights.

    Example:
        >>> import torch
        >>> from dfkd_core import ModelCard, Teacher, build_classifier
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> logits, features = teacher.forward_with_features(torch.rand(2, 1, 32, 32))
        >>> logits.shape, features.shape
        (torch.Size([2, 10]), torch.Size([2, 84]))
    """

    def __init__(
        self, classifier: Classifier, *, device: torch.device | str = "cpu", memory: int | None = None
    ) -> None:
        """Freeze `classifier` (in place), move it to `device` and run one probe image through it.

        Args:
            classifier: The network.
            device: Device to compute on.
            memory: Bytes that its passes may use; larger batches are split. None for the free memory.

        Raises:
            TeacherError: The layer path is wrong, the layer does not determine the logits, the number of outputs is
                not the card's `num_classes`, a weight is not finite, or the network rejects an image of the card's
                shape.
        """
        _check_finite(classifier)
        self.digest = model_digest(classifier)
        self.device = torch.device(device)
        self._classifier: Classifier = classifier.to(self.device).eval().requires_grad_(False)
        self._layer = parse_layer(classifier.card.layer).module(classifier)
        self.passes = PassSizes(self._classifier, memory=memory)
        """Chooses how many images are passed through it at once."""
        self._trace = self._run_probe()
        self._merged: dict[tuple[str, ...], Teacher | None] = {}

    @property
    def card(self) -> ModelCard:
        """Facts about the network."""
        return self._classifier.card

    @property
    def access(self) -> Access:
        """All levels: labels, gradients, layers and weights."""
        return "layers"

    @property
    def memory(self) -> int:
        """Bytes that a pass may use."""
        return self.passes.memory

    @property
    def network(self) -> nn.Module:
        """The frozen network; takes normalised images."""
        return self._classifier.network

    @property
    def classifier(self) -> Classifier:
        """The frozen classifier, to be stored; for results call the teacher."""
        return self._classifier

    def merged(self, *, keep: Sequence[str] = ()) -> Teacher:
        """Return this teacher with BatchNorm merged into the layers before it, if possible; it is then faster.

        It is the same function up to rounding and keeps the digest and the sizes of passes. The values of the modelled
        layer and of the layers at the addresses in `keep` do not change. See `dfkd_core.models.merging`.
        """
        kept = (self.card.layer, *keep)
        if kept not in self._merged:
            self._merged[kept] = self._merge(kept)
        return self._merged[kept] or self

    def _merge(self, keep: Sequence[str]) -> Teacher | None:
        classifier = merge_batch_norm(self._classifier, keep=keep)
        if classifier is self._classifier:
            return None
        whole = Teacher(classifier, device=self.device)
        whole.digest, whole.passes = self.digest, self.passes
        return whole

    @property
    def num_features(self) -> int:
        """Units d of the modelled layer."""
        return self._trace.features_shape[1]

    def __call__(self, images: Tensor) -> Tensor:
        """Map images [n, c, h, w] in [0, 1] to logits [n, k]."""
        logits: Tensor = self._classifier(images)
        return logits

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """Return logits float32 [n, k] for images [n, c, h, w] in [0, 1], in parts if memory is short; no gradient."""
        return joined([self(part).float() for part in self.passes.split(images)])

    def normalise(self, images: Tensor) -> Tensor:
        """Return the network's input for images [n, c, h, w] in [0, 1]."""
        return self._classifier.normalise(images)

    def forward_with_outputs(self, addresses: Sequence[str], images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map images to logits and the values at addresses of layers, see `dfkd_core.models.layers`."""
        return forward_with_outputs(self._classifier, addresses, images)

    def output_shape(self, address: str) -> tuple[int, ...]:
        """Return the shape of the value at an address for one image; empty if it cannot be read or is no tensor."""
        return output_shape(self._classifier, address)

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [n, c, h, w] in [0, 1] to logits [n, k] and features [n, d].

        For a layer with a spatial output, the features are its mean over positions.
        """
        layer = self.card.layer
        with recorded(self._classifier, [layer]) as outputs:
            logits = self(images)
        features = outputs[layer]
        return logits, features.flatten(2).mean(2) if features.dim() > 2 else features

    @torch.no_grad()
    def rest(self, features: Tensor) -> Tensor:
        """Map features [n, d] through the layers after the modelled one to logits [n, k].

        Raises:
            TeacherError: The layer's output has more than one position, so that a vector does not determine it.
        """
        if self.card.layer == OUTPUT:
            return features.to(self.device)
        shape = self._trace.features_shape
        if any(size != 1 for size in shape[2:]):
            raise TeacherError(
                f"Layer {self.card.layer!r} has output {shape[1:]}, and features can only be passed on from a layer "
                "with one position. Choose a layer after the pooling: teacher.layer"
            )
        # The hook replaces one row by n, so that the layers before do not run n times for nothing.
        images = torch.zeros(1, *self.card.image_shape, device=self.device)
        replacement = features.to(self.device).view(len(features), *shape[1:])
        with replaced(self._classifier, self.card.layer, replacement):
            return self(images)

    def layer_weights(self, side: Side) -> Tensor:
        """Return the weights of the modelled layer's units, one row per unit: [d, fan].

        `incoming` are those of the last linear or convolutional layer that runs up to the modelled layer,
        `outgoing` those of the first one after it. If the logits are the modelled layer, they have none: each logit
        counts as a separate unit, [k, k].

        Raises:
            TeacherError: There is no such layer, or it does not have one row or column per unit.
        """
        if self.card.layer == OUTPUT:
            return torch.eye(self.num_features)
        modules = self._trace.before[::-1] if side == "incoming" else self._trace.after
        weights = [weight for module in modules if (weight := weight_of(module)) is not None]
        if weights:
            rows = weights[0].detach() if side == "incoming" else weights[0].detach().transpose(0, 1)
            if len(rows) == self.num_features:
                return rows.flatten(1).cpu()
        raise TeacherError(
            f"Layer {self.card.layer!r} has no {side} weights with one row for each of its {self.num_features} units. "
            f"Use statistics.side: {'outgoing' if side == 'incoming' else 'incoming'} or statistics.source: probes"
        )

    def layer_bias(self) -> Tensor:
        """Return the bias [d] of the modelled layer's units; 0 if they have none."""
        for module in reversed(self._trace.before):
            if weight_of(module) is not None:
                bias = getattr(module, "bias", None)
                if bias is not None and len(bias) == self.num_features:
                    found: Tensor = bias.detach().cpu()
                    return found
                break
        return torch.zeros(self.num_features)

    def layer_batch_norm_moments(self) -> tuple[Tensor, Tensor]:
        """Return mean [d] and standard deviation [d] of the features from BatchNorm buffers.

        - If BatchNorm directly follows the layer: its running mean and variance.
        - If the layer is BatchNorm: its shift and the absolute value of its scale.
        - Otherwise: the last BatchNorm before it, with its output taken as normal and rectified, as after ReLU.

        Raises:
            TeacherError: There is no BatchNorm with d channels at that place.
        """
        following = self._trace.after[0] if self._trace.after else None
        if isinstance(following, BatchNorm) and following.num_features == self.num_features:
            return _buffer(following.running_mean), _buffer(following.running_var).sqrt()
        preceding = next((m for m in reversed(self._trace.before) if isinstance(m, BatchNorm)), None)
        if preceding is None or preceding.num_features != self.num_features or preceding.weight is None:
            raise TeacherError(
                f"No BatchNorm with {self.num_features} channels is at layer {self.card.layer!r}. "
                "Use statistics.source: weights or probes"
            )
        mean, std = preceding.bias.detach().cpu(), preceding.weight.detach().abs().cpu()
        return (mean, std) if preceding is self._layer else _rectified_moments(mean, std)

    def _run_probe(self) -> _Trace:
        order: list[nn.Module] = []
        split: list[tuple[int, Any]] = []
        leaves = [module for _, module, is_leaf in layers_of(self._classifier.network) if is_leaf]
        images = torch.rand(2, *self.card.image_shape, generator=derive_generator(0, "teacher")).to(self.device)
        try:
            with torch.no_grad(), ExitStack() as stack:
                for leaf in () if self.card.layer == OUTPUT else leaves:
                    handle = leaf.register_forward_hook(lambda module, args, output: order.append(module))
                    stack.callback(handle.remove)
                stack.enter_context(
                    watched(self._classifier, self.card.layer, lambda value: split.append((len(order), value)))
                )
                logits = self(images)
        except (RuntimeError, ValueError) as error:
            raise TeacherError(
                f"The teacher rejects images of shape {self.card.image_shape}: {error}. Correct data.image_size"
            ) from error
        if not split:
            raise TeacherError(f"Layer {self.card.layer!r} does not run in the teacher's forward pass")
        position, features = split[-1]
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        if len(shape) not in (2, 4) or shape[0] != 2:
            raise TeacherError(
                f"Layer {self.card.layer!r} returns {shape or type(features).__name__} for 2 images; it must be (2, "
                "units) or (2, units, height, width). Choose another teacher.layer; see them with: dfkd layers"
            )
        if logits.shape != (2, self.card.num_classes):
            raise TeacherError(
                f"The teacher's output for 2 images has shape {tuple(logits.shape)}; with num_classes = "
                f"{self.card.num_classes} it must be (2, {self.card.num_classes}). Correct num_classes."
            )
        if self.card.layer != OUTPUT and all(size == 1 for size in shape[2:]):
            self._check_rest(images)
        return _Trace(tuple(order[:position]), tuple(order[position:]), shape)

    def _check_rest(self, images: Tensor) -> None:
        if fault := rest_fault(self._classifier, self.card.layer, images):
            raise TeacherError(
                f"Layer {self.card.layer!r} does not determine the logits: {fault}. Something else reaches the logits "
                f"too, such as a second head or a shortcut. Model the logits: --set teacher.layer={OUTPUT}"
            )


def load_teacher(folder: Path, *, compute: Compute = CPU, trusted_factories: Collection[str] = ()) -> Teacher:
    """Read a classifier that `save_model` wrote and freeze it as a `Teacher`.

    Args:
        folder: Folder with config.json and the weights or the program.
        compute: Device and memory that it uses.
        trusted_factories: As in `load_model`.

    Raises:
        ConfigError: The machine has no such device, or as `load_model`.
        TeacherError: As `load_model` and `Teacher`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dfkd_core import ModelCard, build_classifier, load_teacher, save_model
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     save_model(Path(folder), build_classifier(card, seed=0))
        ...     teacher = load_teacher(Path(folder))
        >>> teacher.access, teacher.num_features
        ('layers', 84)
    """
    compute = settled(compute)
    classifier = load_model(folder, trusted_factories=trusted_factories)
    return Teacher(classifier, device=compute.device, memory=compute.memory)


def _check_finite(classifier: Classifier) -> None:
    state = classifier.network.state_dict().items()
    bad = [name for name, tensor in state if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise TeacherError(f"The teacher's weights hold NaN or Inf: {', '.join(bad)}. Use another checkpoint")


def _buffer(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise TeacherError(
            "The BatchNorm at the modelled layer keeps no running statistics. Use statistics.source: weights"
        )
    return tensor.detach().cpu()


def _rectified_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments of max(0, x), for x ~ N(mean, std^2)."""
    std = std.clamp_min(1e-12)
    ratio = mean / std
    density = torch.exp(-0.5 * ratio**2) / (2 * torch.pi) ** 0.5
    mass = 0.5 * (1 + torch.erf(ratio / 2**0.5))
    first = mean * mass + std * density
    second = (mean**2 + std**2) * mass + mean * std * density
    return first, (second - first**2).clamp_min(0).sqrt()
