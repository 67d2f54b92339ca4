"""Images of any size, grey or colour, converted to the shape that a model takes.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CHUNK_IMAGES", "Fit", "FittedImages", "resize", "resize_and_crop", "with_channels"]

CHUNK_IMAGES = 4096
"""Images that are converted at once, to bound the memory."""
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_MARGIN = 256 / 224
_SIZE_WITH_MARGIN_PX = 128

Fit = Callable[[Tensor, int, int], Tensor]
"""Converts uint8 images [n, c, *, *] to a height and a width in pixels."""


class FittedImages:
    """Images that are read and converted to one shape on access, so that few are in memory at a time."""

    device = torch.device("cpu")
    dtype = torch.uint8

    def __init__(
        self, read: Callable[[list[int]], Iterable[Tensor]], num_images: int, shape: tuple[int, int, int], fit: Fit
    ) -> None:
        """Describe the images; none is read.

        Args:
            read: Returns the images at the positions in their order, as uint8 tensors [m, 1 or 3, any height, any
                width] of one or more images.
            num_images: Images n.
            shape: Channels (1 or 3), height and width (c, h, w) of the result.
            fit: Converts images to that height and width.
        """
        self.shape = torch.Size((num_images, *shape))
        self._read, self._fit = read, fit

    def __len__(self) -> int:
        """Return the number of images n."""
        return self.shape[0]

    def __getitem__(self, positions: Tensor | slice, /) -> Tensor:
        """Read the images at `positions` [m], or in a slice, and return them as uint8 [m, c, h, w]."""
        count, channels, height, width = self.shape
        read = self._read(torch.arange(count)[positions].tolist())
        return torch.cat([self._fit(with_channels(images, channels), height, width) for images in read])


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat a grey channel, or convert colours to grey (luma of ITU-R BT.601).

    Args:
        images: uint8 [n, 1 or 3, h, w].
        channels: 1 or 3.
    """
    own = images.shape[1]
    if own == channels:
        return images
    if own == 1:
        return images.repeat(1, channels, 1, 1)
    luma = [torch.tensordot(chunk.float(), _LUMA, ([1], [0])) for chunk in torch.split(images, CHUNK_IMAGES)]
    return torch.cat([chunk.round().clamp(0, 255).byte()[:, None] for chunk in luma])


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Zero-pad images of 28 pixels to 32, and resize others bilinearly, without keeping their aspect ratio.

    Args:
        images: uint8 [n, c, *, *].
        height: Height h of the result in pixels.
        width: Width w of the result in pixels.
    """
    own = tuple(images.shape[-2:])
    if own == (height, width):
        return images
    if own == (28, 28) and (height, width) == (32, 32):
        return functional.pad(images, (2, 2, 2, 2))
    chunks = [
        functional.interpolate(chunk.float(), (height, width), mode="bilinear", antialias=True)
        for chunk in torch.split(images, CHUNK_IMAGES)
    ]
    return torch.cat([chunk.round().clamp(0, 255).byte() for chunk in chunks])


def resize_and_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images until they cover the wanted size, keeping their aspect ratio, and cut out the centre.

    From 128 pixels on they are made 256/224 times as large as necessary, as usual for evaluation on ImageNet: for 224
    pixels the shorter side becomes 256. Images of the wanted size are not changed.

    Arguments as in `resize`.
    """
    own_height, own_width = images.shape[-2:]
    if (own_height, own_width) == (height, width):
        return images
    margin = _MARGIN if min(height, width) >= _SIZE_WITH_MARGIN_PX else 1
    least_height, least_width = round(margin * height), round(margin * width)
    if least_height * own_width >= least_width * own_height:
        size = (least_height, least_height * own_width // own_height)
    else:
        size = (least_width * own_height // own_width, least_width)
    resized = resize(images, *size)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return resized[..., top : top + height, left : left + width]
