"""A moving average of a network's weights beside its training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["moving_average"]


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Return an average of weights and BatchNorm buffers that forgets its first steps sooner than later ones.

    The first update makes it a copy. Update t + 1 moves it by 1 - min(decay, (1 + t) / (10 + t)) towards the network,
    as TensorFlow's ExponentialMovingAverage does with `num_updates`.

    Args:
        network: What is trained; call `update_parameters(network)` after each step.
        decay: Factor in (0, 1) by which an older step counts less, once as many steps are done.
    """

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        steps = int(num_averaged)
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        for average, value in zip(averages, values, strict=True):
            # BatchNorm also counts batches, in whole numbers.
            average.lerp_(value, share) if average.is_floating_point() else average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
