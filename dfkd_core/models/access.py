"""Access to a teacher: three nested protocols, and the single check of the access that a piece of work needs.

    Labeller            images -> logits; may be a program that can only be run
    └── Differentiable  also the gradient of the logits with respect to the images
        └── Inspectable also its layers and weights

`dfkd_core.models.teacher.Teacher` is Inspectable. Methods, sources of statistics and settings of a distillation declare
the `Access` that they need.

n images, c channels, h height, w width, d units of the modelled layer, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.passes import PassSizes

__all__ = ["Access", "Differentiable", "Inspectable", "Labeller", "Side", "has_access", "require_access"]

Access = Literal["labels", "gradient", "layers"]
"""Labels of images, the gradient to the images, layers and weights; each level includes the ones before it."""

Side = Literal["incoming", "outgoing"]
"""Weights of the modelled layer's units: `incoming` ones feed the units, `outgoing` ones read them."""

_MEANING: dict[Access, str] = {
    "labels": "returns logits for images",
    "gradient": "also returns the gradient with respect to its images",
    "layers": "also exposes its layers and weights",
}


class Labeller(Protocol):
    """A teacher that returns logits for images."""

    @property
    def access(self) -> Access:
        """Level of access that it allows."""

    @property
    def card(self) -> ModelCard:
        """Shape of its images, its classes and its normalisation."""

    @property
    def digest(self) -> str:
        """SHA-256 that distinguishes teachers, 64 hex digits."""

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""

    @property
    def memory(self) -> int:
        """Bytes on `device` that a pass through a network may use."""

    def label(self, images: Tensor) -> Tensor:
        """Return logits float32 [n, k] for images [n, c, h, w] in [0, 1], both on `device`, without a gradient.

        A batch that does not fit into memory is labelled in parts.
        """


class Differentiable(Labeller, Protocol):
    """A teacher through which gradients flow to the images."""

    passes: PassSizes
    """Chooses how many images are passed through it at once."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map images [n, c, h, w] in [0, 1] to logits [n, k], differentiable with respect to the images."""


class Inspectable(Differentiable, Protocol):
    """A teacher whose layers and weights can be read."""

    @property
    def network(self) -> nn.Module:
        """The frozen network; takes normalised images."""

    @property
    def num_features(self) -> int:
        """Units d of the modelled layer."""

    def normalise(self, images: Tensor) -> Tensor:
        """Return the network's input for images [n, c, h, w] in [0, 1]."""

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [n, c, h, w] in [0, 1] to logits [n, k] and features [n, d]."""

    def forward_with_outputs(self, addresses: Sequence[str], images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map images [n, c, h, w] in [0, 1] to logits [n, k] and the values at addresses of layers, in one pass."""

    def output_shape(self, address: str) -> tuple[int, ...]:
        """Return the shape of the value at an address for one image; empty if it cannot be read or is no tensor."""

    def rest(self, features: Tensor) -> Tensor:
        """Map features [n, d] through the layers after the modelled one to logits [n, k]."""

    def layer_weights(self, side: Side) -> Tensor:
        """Return the weights of the modelled layer's units, one row per unit: [d, fan]."""

    def layer_bias(self) -> Tensor:
        """Return the bias [d] of the modelled layer's units."""

    def layer_batch_norm_moments(self) -> tuple[Tensor, Tensor]:
        """Return mean [d] and standard deviation [d] of the features as BatchNorm remembers them."""

    def merged(self, *, keep: Sequence[str] = ()) -> Inspectable:
        """Return the same teacher with BatchNorm merged into the layers before, up to rounding."""


def has_access(teacher: Labeller, needed: Access) -> bool:
    """Return whether a teacher allows the needed access."""
    order = get_args(Access)
    return order.index(teacher.access) >= order.index(needed)


def require_access(teacher: Labeller, needed: Access, *, by: str, remedy: str) -> None:
    """Check that a teacher allows the access that a piece of work needs.

    Args:
        teacher: The teacher.
        needed: Access that the work needs.
        by: The setting that requires it, for the message, such as `synthesis.method inversion`.
        remedy: Setting to use instead, for the message.

    Raises:
        TeacherError: The teacher allows less.
    """
    if not has_access(teacher, needed):
        raise TeacherError(
            f"{by} needs a teacher that {_MEANING[needed]} (access {needed!r}); this one has access "
            f"{teacher.access!r}. {remedy}"
        )
