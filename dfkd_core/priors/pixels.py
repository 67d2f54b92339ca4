"""Free pixels: every grey value is a parameter of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfkd_core.seeding import uniform_rows

__all__ = ["PixelPrior"]


class PixelPrior:
    """Uniform noise in [0, 1]; the parameters are the pixels [n, c, h, w] themselves.

    Steps are projected onto [0, 1]: a step is then in grey levels everywhere, where a sigmoid's gradient dies near
    black and white.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        """Make images of shape (c, h, w)."""
        self._image_shape = image_shape

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw uniform noise, see `ImagePrior.start`."""
        return uniform_rows(seed, stream, image_indices, self._image_shape)

    def decode(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return the parameters: they are the images."""
        return parameters

    def project(self, parameters: torch.Tensor) -> None:
        """Clamp the pixels to [0, 1]."""
        parameters.clamp_(0, 1)
