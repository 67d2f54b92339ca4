"""Free pixels: every grey value is a separate parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dfkd_core.common.seeding import uniform_rows

__all__ = ["PixelPrior", "paint_in_chunks"]

# Small enough for the maps to stay in the core's cache, large enough to hide the cost of each call; measured.
_PIXELS_PER_CHUNK = 2**17


class PixelPrior:
    """Uniform noise in [0, 1]; the parameters are the pixels [n, c, h, w] themselves.

    Steps are projected onto [0, 1], so that a step has the same size in grey levels everywhere; the gradient of a
    sigmoid vanishes near black and white.
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


def paint_in_chunks(
    paint: Callable[[Sequence[int]], torch.Tensor], image_indices: Sequence[int], image_shape: tuple[int, int, int]
) -> torch.Tensor:
    """Paint images a few at a time, so that memory is bounded and stays in the core's cache.

    Args:
        paint: Paints the images at these indices, [n, c, h, w]; an image must not depend on the others.
        image_indices: The images' positions in the whole transfer set.
        image_shape: (c, h, w).

    Returns:
        float32 [n, c, h, w].
    """
    chunk = max(1, _PIXELS_PER_CHUNK // (image_shape[1] * image_shape[2]))
    painted = torch.empty(len(image_indices), *image_shape)
    for first in range(0, len(image_indices), chunk):
        painted[first : first + chunk] = paint(image_indices[first : first + chunk])
    return painted
