"""Programs that take images with the channels last, as converters of Keras models write them.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["ChannelsFirst", "channels_are_last"]

_CHANNELS = (1, 2, 3, 4)


def channels_are_last(shape: tuple[int | None, ...]) -> bool:
    """Return whether the shape of a program's input, None for open dimensions, is (n, h, w, c) and not (n, c, h, w)."""
    return shape[3] in _CHANNELS and shape[1] not in _CHANNELS and shape[1] == shape[2]


class ChannelsFirst(nn.Module):
    """A program that takes images [n, h, w, c], as a module that takes images [n, c, h, w]."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> Any:
        """Map images [n, c, h, w] to the program's answer."""
        return self.program(images.permute(0, 2, 3, 1))
