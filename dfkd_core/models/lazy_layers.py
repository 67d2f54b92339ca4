"""Lazy layers of PyTorch, whose weights get their shapes in the first forward pass.

c channels, h height, w width.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dfkd_core.errors import ConfigError, first_line

__all__ = ["has_lazy_layers", "initialised"]


def has_lazy_layers(network: nn.Module) -> bool:
    """Return whether a weight or a buffer of the network has no shape yet."""
    return any(map(is_lazy, itertools.chain(network.parameters(), network.buffers())))


@torch.no_grad()
def initialised(network: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return the network after one forward pass if it has lazy layers, and as it is otherwise.

    Their weights are drawn from the global generator.

    Args:
        network: In any mode, which is kept.
        image_shape: Shape (c, h, w) of an image.

    Raises:
        ConfigError: The network rejects such an image.
    """
    if not has_lazy_layers(network):
        return network
    is_training = network.training
    try:
        network.eval()(torch.zeros(2, *image_shape))
    # The code of a network can raise any exception, or end the process.
    except (Exception, SystemExit) as error:
        shape = "x".join(map(str, image_shape))
        raise ConfigError(f"The network has lazy layers and rejects images of {shape}: {first_line(error)}") from error
    return network.train(is_training)
