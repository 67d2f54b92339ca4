"""Gaussian noise: the lower bound that every method must beat.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dfkd_core.common.seeding import normal_rows
from dfkd_core.models.access import Access, Inspectable, Labeller
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import Positive, config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, SynthesizedBatch, Synthesizer

__all__ = ["NoiseConfig", "NoiseSynthesizer"]


@config_section
class NoiseConfig(MethodConfig):
    """Gaussian noise around mid-grey."""

    needs: ClassVar[Access] = "labels"

    std: Positive = 0.25
    """Standard deviation of a pixel before it is clamped to [0, 1]."""

    def build(self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE) -> Synthesizer:
        """Build the method for `teacher`; the feature statistics are not used."""
        return NoiseSynthesizer(teacher, self)


@dataclass(frozen=True, slots=True)
class NoiseSynthesizer:
    """Draws noise; the soft target of an image is the teacher's own output."""

    teacher: Labeller
    config: NoiseConfig

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make images, see `Synthesizer.synthesize`."""
        noise = normal_rows(seed, "prior", image_indices, self.teacher.card.image_shape)
        images = (0.5 + self.config.std * noise).clamp(0, 1)
        targets = self.teacher.label(images.to(self.teacher.device)).softmax(1).cpu()
        return SynthesizedBatch(images, targets)
