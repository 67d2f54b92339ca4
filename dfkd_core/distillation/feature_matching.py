"""Matching of a student's hidden outputs with its teacher's, without labels.

Hints as in FitNets (Romero et al., 2015, arXiv 1412.6550, equation 3): the squared distance of two layers' outputs,
with a learned map between them if their widths differ. Here it is divided by the variance of the teacher's outputs, so
that all layers count equally, regardless of their scale.

n images, c channels, h height, w width, d units of a layer, k classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd_core.common.least_squares import fit_linear
from dfkd_core.common.pixels import grey_images, load_batch
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_seed
from dfkd_core.models.access import Inspectable
from dfkd_core.models.classifier import Classifier, output_shape
from dfkd_core.models.layers import OUTPUT, forward_with_outputs, parse_layer, recorded
from dfkd_core.models.passes import joined

__all__ = ["FeatureMatcher", "normalised_mse"]

# Outputs whose variance is below this share of their mean square are the same for all images, up to rounding.
_CONSTANT = 1e-12
_MAX_FITTED_IMAGES = 1000
# Passes in which a layer that is skipped at random is likely to be called.
_NUM_PASSES = 4


class FeatureMatcher(nn.Module):
    """Compares outputs of a student's layers with those of its teacher's; holds the learned map between widths.

    The modelled layer is always compared. If the student has no such layer, its own default layer is used. Outputs with
    positions are averaged over them unless both networks have the same positions. In addition, every layer with weights
    and every stage of residual blocks that both networks have under the same path with the same output shape is
    compared, except the layer of the logits. For LeNet-5 and its half, these are `conv3` and `fc1`.
    """

    def __init__(self, teacher: Inspectable, student: Classifier, *, seed: int) -> None:
        """Find the layers to compare, with one probe image per network.

        Args:
            teacher: The network whose outputs are the target.
            student: The network in training, of any width.
            seed: Seed of the learned map's first weights.
        """
        super().__init__()
        modelled = teacher.card.layer
        in_both = _steps_in_both(teacher, student, without=modelled)
        own_layers = [layer for layer in (modelled, student.card.layer, OUTPUT) if _has_layer(student, layer)]
        shapes = _shapes_in_training(student, [*in_both, *own_layers])
        own = next(layer for layer in own_layers if shapes[layer])
        wide_shapes = {path: teacher.output_shape(path) for path in in_both}
        shared = [path for path in in_both if wide_shapes[path] and wide_shapes[path] == shapes[path]]
        self.teacher_paths: tuple[str, ...] = (modelled, *shared)
        """Addresses of the teacher's layers, the modelled layer first."""
        self.student_paths: tuple[str, ...] = (own, *shared)
        """Addresses of the student's layers, in the same order."""
        self.unread: tuple[str, ...] = tuple(path for path in in_both if not (wide_shapes[path] and shapes[path]))
        """Layers of both networks that are left out, since one of the networks does not call them."""
        wide, narrow = teacher.output_shape(modelled), shapes[own]
        self._by_unit = wide != narrow
        self.projection: nn.Linear | None = _projection(narrow[0], wide[0], seed) if narrow[0] != wide[0] else None
        """Learned map from the student's units of the modelled layer to the teacher's; None for equal numbers."""

    @torch.no_grad()
    def fit_map(self, teacher: Inspectable, student: Classifier, images: Rows) -> None:
        """Set the learned map, if there is one, to the least-squares fit on images, in float64 on the CPU.

        Meant for a student that starts as a thinner copy of its teacher: a random map would degrade it until the map is
        learned. With random first weights, the student's units are so small that the fitted map would be huge.

        Args:
            teacher: The network whose outputs are the target.
            student: The student before its first step, on its device; its mode does not change.
            images: uint8 images [n, c, h, w], of which the first 1,000 are used.
        """
        if self.projection is None:
            return
        batch = load_batch(images, torch.arange(min(_MAX_FITTED_IMAGES, len(images))), teacher.device)
        is_training = student.training
        student.eval()
        parts = teacher.passes.split(batch)
        own_parts = [part.to(student.mean.device) for part in parts]
        narrow = _units(partial(forward_with_outputs, student), self.student_paths[0], own_parts)
        wide = _units(teacher.forward_with_outputs, self.teacher_paths[0], parts)
        student.train(is_training)
        weights, bias = fit_linear(narrow, wide, narrow.new_zeros(wide.shape[1], narrow.shape[1]))
        self.projection.weight.copy_(weights)
        self.projection.bias.copy_(bias)

    def forward(self, student_outputs: Sequence[Tensor | None], teacher_outputs: Sequence[Tensor]) -> Tensor:
        """Return the mean over the layers of `normalised_mse`.

        Args:
            student_outputs: Outputs of the layers at `student_paths`, [n, d, ...] each; None for a layer that this pass
                skipped, which then does not count.
            teacher_outputs: Outputs of the layers at `teacher_paths`, [n, d, ...] each.
        """
        pairs = enumerate(zip(student_outputs, teacher_outputs, strict=True))
        terms = [self._term(own.float(), wanted.float(), place) for place, (own, wanted) in pairs if own is not None]
        return torch.stack(terms).mean() if terms else torch.zeros((), device=teacher_outputs[0].device)

    def _term(self, own: Tensor, wanted: Tensor, place: int) -> Tensor:
        if place == 0 and self._by_unit:
            own, wanted = _unit_means(own), _unit_means(wanted)
        if place == 0 and self.projection is not None:
            own = self.projection(own)
        return normalised_mse(own, wanted)


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference over the teacher's mean variance: mean (s - t)^2 / mean (t - mean_n t)^2.

    The best constant reaches 1. The result is 0 if the teacher's outputs are the same for all images, as for one image.

    Args:
        student: Outputs [n, ...].
        teacher: Outputs [n, ...] of the same shape.
    """
    spread = (teacher - teacher.mean(0)).square().mean()
    is_constant = spread <= _CONSTANT * teacher.square().mean()
    ratio = functional.mse_loss(student, teacher) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where(is_constant, 0.0, ratio)


def _has_layer(classifier: Classifier, address: str) -> bool:
    path = parse_layer(address).path
    return not path or path in dict(classifier.network.named_modules())


def _steps_in_both(teacher: Inspectable, student: Classifier, *, without: str) -> list[str]:
    own = _weighted_steps(student.network)
    return [path for path in _weighted_steps(teacher.network) if path in own and path != without]


def _shapes_in_training(student: Classifier, addresses: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of the value at each address for one image; empty if it is not the same in both modes.

    A layer may be skipped in training, always or at random. The student is not changed.
    """
    shapes = {address: output_shape(student, address) for address in addresses}
    found: dict[str, tuple[int, ...]] = {}
    # In training mode, BatchNorm would update its statistics.
    trial = copy.deepcopy(student).train()
    images = grey_images(2, student.card.image_shape, student.mean.device)
    devices = [student.mean.device] if student.mean.is_cuda else []
    readable = [address for address, shape in shapes.items() if shape]
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for _ in range(_NUM_PASSES):
            with recorded(trial, readable) as values:
                trial(images)
            found |= {address: _shape(value) for address, value in values.items()}
    return {address: shape if found.get(address) == shape else () for address, shape in shapes.items()}


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def _weighted_steps(network: nn.Module) -> list[str]:
    """Return the network's steps with a kernel or a weight matrix, except the last, which computes the logits."""
    steps = network.named_children()
    return [name for name, step in steps if any(weight.ndim > 1 for weight in step.parameters())][:-1]


def _projection(num_inputs: int, num_outputs: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init", "projection"))
        return nn.Linear(num_inputs, num_outputs)


def _units(
    forward: Callable[[Sequence[str], Tensor], tuple[Tensor, list[Tensor]]], path: str, parts: Sequence[Tensor]
) -> Tensor:
    """Return the units [n, d] of a layer for images in parts, float64 on the CPU."""
    passes = [forward([path], part) for part in parts]
    return joined([_unit_means(output).cpu().double() for _, (output,) in passes])


def _unit_means(outputs: Tensor) -> Tensor:
    return outputs.flatten(2).mean(2) if outputs.dim() > 2 else outputs
