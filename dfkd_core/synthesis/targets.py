"""Synthesis of images towards given soft targets.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dfkd_core.models.access import Inspectable
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.synthesis.base import SynthesizedBatch
from dfkd_core.synthesis.refinement import RefinementConfig, refine

__all__ = ["DrawTargets", "TargetedSynthesizer"]


DrawTargets = Callable[[Sequence[int], int], Tensor]
"""Draws soft targets, float32 [n, k] on the CPU with rows that sum to 1, from the images' positions in the transfer set
and the seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetedSynthesizer:
    """Makes one image for each soft target."""

    teacher: Inspectable
    draw_targets: DrawTargets
    refinement: RefinementConfig

    def soft_targets(self, image_indices: Sequence[int], *, seed: int) -> Tensor:
        """Draw the soft targets [n, k] of these images."""
        return self.draw_targets(image_indices, seed)

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make images, see `Synthesizer.synthesize`."""
        targets = self.draw_targets(image_indices, seed)
        images = refine(
            self.teacher,
            targets,
            image_indices=image_indices,
            seed=seed,
            config=self.refinement,
            on_progress=on_progress,
        )
        return SynthesizedBatch(images, targets)
