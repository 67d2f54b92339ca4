"""The interface of every image prior.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

__all__ = ["ImagePrior"]


class ImagePrior(Protocol):
    """A parametrisation of images and a distribution over its parameters.

    It is built with the shape (c, h, w) of one image.
    """

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw parameters for n images; those of one image depend only on (seed, stream, its index).

        Args:
            image_indices: The images' positions in the whole transfer set.
            seed: The run's seed.
            stream: Name of the draws; another name yields independent draws.

        Returns:
            float32 [n, ...] on the CPU.
        """

    def decode(self, parameters: torch.Tensor) -> torch.Tensor:
        """Map parameters [n, ...] into images [n, c, h, w] in [0, 1]; differentiable, image by image."""

    def project(self, parameters: torch.Tensor) -> None:
        """Move parameters in place into the set on which `decode` is one to one; called after each step."""
