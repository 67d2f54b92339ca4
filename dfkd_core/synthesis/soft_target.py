"""Soft targets sampled from the teacher's feature space: Wang, AAAI 2021.

A feature vector h ~ N(mu, Sigma) is pushed through the rest of the teacher: y = softmax(rest(h) / tau). It is drawn
once per image and stays fixed while the image is refined towards it.

n images, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import config_section
from dfkd_core.seeding import normal_rows
from dfkd_core.statistics import FeatureStatistics
from dfkd_core.synthesis.base import SynthesizedBatch, Synthesizer
from dfkd_core.synthesis.refinement import RefinementConfig, refine
from dfkd_core.teacher import Teacher

__all__ = ["SoftTargetConfig", "SoftTargetSynthesizer"]


@config_section
class SoftTargetConfig:
    """Soft targets from the teacher's feature statistics."""

    refinement: RefinementConfig = field(default_factory=RefinementConfig)

    def build(self, teacher: Teacher, statistics: FeatureStatistics) -> Synthesizer:
        """Build the method for `teacher`."""
        return SoftTargetSynthesizer(teacher, statistics, self)


@dataclass(frozen=True, slots=True)
class SoftTargetSynthesizer:
    """Makes one image for each sampled soft target."""

    teacher: Teacher
    statistics: FeatureStatistics
    config: SoftTargetConfig

    @property
    def temperature(self) -> float:
        """Temperature of the soft targets."""
        return self.config.refinement.temperature

    def soft_targets(self, image_indices: Sequence[int], *, seed: int) -> torch.Tensor:
        """Draw the soft targets [n, k] of these images."""
        noise = normal_rows(seed, "target", image_indices, (self.statistics.rank,))
        logits = self.teacher.rest(self.statistics.transform(noise))
        return (logits.float() / self.temperature).softmax(1).cpu()

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make images, see `Synthesizer.synthesize`."""
        targets = self.soft_targets(image_indices, seed=seed)
        images = refine(
            self.teacher,
            targets,
            image_indices=image_indices,
            seed=seed,
            config=self.config.refinement,
            on_progress=on_progress,
        )
        return SynthesizedBatch(images, targets)
