"""What every synthesis method offers.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from dfkd_core.progress import OnProgress, ignore

__all__ = ["Labelling", "SynthesizedBatch", "Synthesizer"]


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
            on_progress: May be told how far these images are, in any unit; the caller knows when they are done.

        Raises:
            SynthesisError: A loss is not finite.
        """


@runtime_checkable
class Labelling(Protocol):
    """A synthesizer whose images are labelled in another way than by the frozen teacher."""

    def label(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits to store, float32 [n, k] on the CPU, for one batch of float images [n, c, h, w] in [0, 1].

        A distillation with augmentation labels the moved images with the teacher as it is; without it, these count.
        """
