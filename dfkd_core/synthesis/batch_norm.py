"""A teacher's BatchNorm layers: distance of a batch from their running statistics, and normalisation by the batch.

BatchNorm (Ioffe and Szegedy, ICML 2015) stores running estimates of each channel's mean and variance in training.

n images, f channels of a layer, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dfkd_core.errors import TeacherError
from dfkd_core.models.access import Inspectable
from dfkd_core.models.layers import BatchNorm

__all__ = ["batch_norm_distance", "batch_norm_layers", "normalising_by_batch", "recording_distances"]

_Hook = Callable[[Any, Any, Any], Tensor | None]


def batch_norm_layers(teacher: Inspectable, *, method: str) -> tuple[BatchNorm, ...]:
    """Return the teacher's BatchNorm layers that keep running statistics.

    Args:
        teacher: The teacher.
        method: The synthesis method that needs them, for the message.

    Raises:
        TeacherError: The teacher has no such layer.
    """
    modules = teacher.network.modules()
    layers = tuple(m for m in modules if isinstance(m, BatchNorm) and m.running_mean is not None)
    if not layers:
        raise TeacherError(
            f"The {method} method reads BatchNorm statistics, and the teacher {teacher.card.network!r} has no "
            "BatchNorm that keeps them. Use one that does (teacher.network: lenet5_bn, alexnet or a resnet) or set "
            "synthesis.method: soft_target"
        )
    return layers


def batch_norm_distance(inputs: Tensor, layer: BatchNorm) -> Tensor:
    """Return ||mean(z) - running_mean||_2 + ||var(z) - running_var||_2, a scalar.

    Mean and biased variance of a channel are over the batch and all positions: Yin et al., CVPR 2020, equation 4.

    Args:
        inputs: The layer's input z, [n, f] or [n, f, h, w].
        layer: The BatchNorm layer, with buffers [f].
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = _moments(inputs)
    mean_distance: Tensor = torch.linalg.vector_norm(mean - layer.running_mean)
    variance_distance: Tensor = torch.linalg.vector_norm(variance - layer.running_var)
    return mean_distance + variance_distance


@contextmanager
def recording_distances(layers: tuple[BatchNorm, ...]) -> Iterator[list[Tensor]]:
    """Collect the distance of each layer at each of its calls within the block; differentiable scalars."""
    distances: list[Tensor] = []

    def record(layer: Any, args: Any, output: Any) -> None:
        distances.append(batch_norm_distance(args[0], layer))

    with _hooked(layers, record):
        yield distances


@contextmanager
def normalising_by_batch(layers: tuple[BatchNorm, ...]) -> Iterator[None]:
    """Make the layers normalise by the statistics of their batch within the block; their buffers stay unchanged.

    The outputs are those of training mode. If a channel has the same value everywhere, its output is the layer's shift.
    """

    def normalise(layer: Any, args: Any, output: Any) -> Tensor:
        mean, variance = _moments(args[0])
        shape = (1, -1, *[1] * (args[0].dim() - 2))
        scale = (variance + layer.eps).rsqrt()
        normalised = (args[0].float() - mean.view(shape)) * scale.view(shape)
        if layer.affine:
            normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
        result: Tensor = normalised.to(output.dtype)
        return result

    with _hooked(layers, normalise):
        yield


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance [f] over all dimensions except the channels."""
    dimensions = [0, *range(2, inputs.dim())]
    variance, mean = torch.var_mean(inputs.float(), dim=dimensions, correction=0)
    return mean, variance


@contextmanager
def _hooked(layers: tuple[BatchNorm, ...], hook: _Hook) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
