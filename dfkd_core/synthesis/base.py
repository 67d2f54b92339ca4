"""What every synthesis method offers.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dfkd_core.progress import OnProgress, ignore

__all__ = ["SynthesizedBatch", "Synthesizer"]


@dataclass(frozen=True, slots=True)
class SynthesizedBatch:
    """Images and the distributions that they were made for."""

    images: torch.Tensor
    """float32 [n, c, h, w] in [0, 1] on the CPU."""
    soft_targets: torch.Tensor
    """float32 [n, k] on the CPU; rows sum to 1."""


class Synthesizer(Protocol):
    """Makes images that a teacher can label."""

    @property
    def temperature(self) -> float:
        """Temperature of the soft targets."""

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make the images at these positions of the transfer set.

        An image depends on (seed, its index) alone, up to rounding; the same batch gives the same bytes.

        Args:
            image_indices: The images' positions in the whole transfer set.
            seed: The run's seed.
            on_progress: Is told how many of these images are done; half the iterations count as half the images.

        Raises:
            SynthesisError: A loss is not finite.
        """
