"""Mixtures of two images of a batch, to be labelled by the teacher.

MixUp blends (Zhang et al., 2018, arXiv 1710.09412, section 2), CutMix pastes a box (Yun et al., 2019, arXiv 1905.04899,
equations 1 and 2). The papers mix the labels in the same proportion; here the teacher labels the mixture. torchvision's
MixUp and CutMix are not used, because they need labels and draw from the global generator.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dfkd_core.common.pixels import move_batch

__all__ = ["Mixing", "mix"]

Mixing = Literal["none", "mixup", "cutmix"]


def mix(images: Tensor, mixing: Mixing, generator: torch.Generator) -> Tensor:
    """Mix each image with the previous one in the batch (shuffle it before), with a share drawn uniformly from [0, 1].

    Args:
        images: Float images [n, c, h, w] in [0, 1]; not changed.
        mixing: `mixup` computes share * image + (1 - share) * neighbour. `cutmix` pastes a box of the neighbour, about
            1 - share of its area, into the image at the same place; the border clips it. `none` changes nothing.
        generator: CPU generator of all random draws.

    Returns:
        Images of the same shape, range and device.
    """
    if mixing == "none":
        return images
    # Uniform, but drawn as Beta(1, 1), so that students stay the same bit for bit as in earlier versions.
    draws = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    shares = torch.from_numpy(draws.beta(1, 1, len(images))).to(images.dtype)
    if mixing == "mixup":
        own = shares.view(-1, 1, 1, 1)
    else:
        own = (~_boxes(shares, torch.rand(2, len(images), generator=generator), images.shape[-2:])).to(images.dtype)
    return torch.lerp(images.roll(1, 0), images, move_batch(own, images.device))


def _boxes(shares: Tensor, centres: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Return masks [n, 1, h, w] of boxes with sides sqrt(1 - share) of the image's.

    Args:
        shares: Shares [n] of the image area outside the boxes.
        centres: Rows and columns [2, n] of the boxes' centres as fractions of h and w.
        size: Height and width.
    """
    inside = []
    for centre, length in zip(centres, size, strict=True):
        middle, half = (centre * length).floor(), ((1 - shares).sqrt() * length).floor() / 2
        places = torch.arange(length)
        inside.append((places >= (middle - half).floor()[:, None]) & (places < (middle + half).floor()[:, None]))
    rows, columns = inside
    boxes: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return boxes
