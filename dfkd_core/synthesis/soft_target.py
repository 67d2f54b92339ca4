"""Soft targets sampled from the teacher's feature space: Wang, AAAI 2021.

A feature vector h ~ N(mu, Sigma) is passed through the rest of the teacher: y = softmax(rest(h) / tau). The target y is
drawn once per image and stays fixed while the image is refined towards it.

n images, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dfkd_core.common.seeding import normal_rows
from dfkd_core.models.access import Access, Inspectable
from dfkd_core.sections import config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, Synthesizer
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.targets import TargetedSynthesizer

__all__ = ["SoftTargetConfig"]

_BALANCING_DRAWS = 32


def _settled_refinement() -> RefinementConfig:
    return RefinementConfig(
        prior="mixed",
        toned_share=0.5,
        learning_rate=0.03,
        smoothing_px=1.0,
        refined_share=0.25,
        draws_per_image=4,
    )


@config_section
class SoftTargetConfig(MethodConfig):
    """Soft targets from the teacher's feature statistics."""

    needs: ClassVar[Access] = "layers"
    uses_statistics: ClassVar[bool] = True
    steps_setting: ClassVar[str] = "refinement"

    balanced: bool = True
    """Whether the targets' most likely class cycles through all classes: the first of 32 draws that fits is used."""
    refinement: RefinementConfig = field(default_factory=_settled_refinement)

    @property
    def target_temperature(self) -> float:
        """Temperature of the refinement."""
        return self.refinement.temperature

    def build(self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE) -> Synthesizer:
        """Build the method for `teacher`.

        Raises:
            TeacherError: The modelled layer has more than one position, so features do not determine a target.
        """
        teacher.rest(statistics.mean[None])
        return TargetedSynthesizer(
            teacher=teacher.merged(),
            draw_targets=partial(_draw_targets, teacher, statistics, self),
            refinement=self.refinement,
        )


def _draw_targets(
    teacher: Inspectable,
    statistics: FeatureStatistics,
    config: SoftTargetConfig,
    image_indices: Sequence[int],
    seed: int,
) -> Tensor:
    num_draws = _BALANCING_DRAWS if config.balanced else 1
    noise = normal_rows(seed, "target", image_indices, (num_draws * statistics.rank,))
    features = statistics.transform(noise.view(-1, statistics.rank))
    probabilities = (teacher.rest(features).float() / config.refinement.temperature).softmax(1).cpu()
    if config.balanced:
        wanted = torch.tensor([int(index) % teacher.card.num_classes for index in image_indices])
        chosen = choose_draws(probabilities.view(len(wanted), num_draws, -1), wanted)
        chosen += torch.arange(len(wanted)) * num_draws
        probabilities = probabilities[chosen]
    return probabilities


def choose_draws(probabilities: Tensor, wanted: Tensor) -> Tensor:
    """Return, for each image, the first draw whose most likely class is the wanted one.

    If no draw fits, return the one in which the wanted class has the highest probability.

    Args:
        probabilities: [n, draws, k].
        wanted: Classes, int64 [n].

    Returns:
        Positions of the chosen draws, int64 [n].
    """
    fits = probabilities.argmax(2) == wanted[:, None]
    likeliest = probabilities[torch.arange(len(wanted)), :, wanted].argmax(1)
    return torch.where(fits.any(1), fits.int().argmax(1), likeliest)
