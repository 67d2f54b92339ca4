"""What every image prior offers.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

__all__ = ["ImagePrior"]


class ImagePrior(Protocol):
    """A parametrisation of images and a distribution over its parameters.

    Built with the shape (c, h, w) of one image.
    """

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw parameters for n images; those of one image depend on (seed, stream, its index) alone.

        Args:
            image_indices: The images' positions in the whole transfer set.
            seed: The run's seed.
            stream: Another name gives independent draws.

        Returns:
            float32 [n, ...] on the CPU.
        """

    def decode(self, parameters: torch.Tensor) -> torch.Tensor:
        """Turn parameters [n, ...] into images [n, c, h, w] in [0, 1]; differentiable, image by image."""

    def project(self, parameters: torch.Tensor) -> None:
        """Bring parameters back, in place, to where `decode` is one to one; called after each step."""
