"""Dirichlet soft targets (ZSKD): Nayak et al., "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019.

Class similarity from the weights w_k of the teacher's last layer: C_kl = <w_k, w_l> / (|w_k| |w_l|), each row scaled
to [0, 1]. The targets of class k are drawn from Dirichlet(beta * C_k), with beta = 0.1 for half of the images and
beta = 1 for the other half.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from dfkd_core.common.seeding import derive_seed
from dfkd_core.errors import TeacherError
from dfkd_core.models.access import Access, Inspectable
from dfkd_core.sections import Positive, config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, Synthesizer
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.targets import TargetedSynthesizer

__all__ = ["DirichletConfig", "class_similarity"]

_SMALLEST_CONCENTRATION = 1e-4


def _zskd_refinement() -> RefinementConfig:
    return RefinementConfig(prior="pixels", iterations=150, learning_rate=0.1)


@config_section
class DirichletConfig(MethodConfig):
    """Soft targets from Dirichlet distributions over the classes (ZSKD)."""

    needs: ClassVar[Access] = "layers"
    steps_setting: ClassVar[str] = "refinement"

    beta_low: Positive = 0.1
    """Scale of the concentration for one half of the images; smaller values yield targets closer to a single class."""
    beta_high: Positive = 1.0
    """Scale of the concentration for the other half."""
    refinement: RefinementConfig = field(default_factory=_zskd_refinement)

    @property
    def target_temperature(self) -> float:
        """Temperature of the refinement."""
        return self.refinement.temperature

    def build(self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE) -> Synthesizer:
        """Build the method for `teacher`; the feature statistics are not used."""
        similarity = class_similarity(_last_weights(teacher))
        return TargetedSynthesizer(
            teacher=teacher.merged(), draw_targets=partial(_draw_targets, self, similarity), refinement=self.refinement
        )


def class_similarity(weights: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of the rows, each row of the result scaled to [0, 1].

    Args:
        weights: [k, d], one row per class.

    Returns:
        [k, k]; 1 on the diagonal.
    """
    directions = nn.functional.normalize(weights, dim=1)
    similarity = directions @ directions.T
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    return (similarity - low) / (high - low).clamp_min(1e-12)


def _last_weights(teacher: Inspectable) -> torch.Tensor:
    num_classes = teacher.card.num_classes
    for module in reversed(list(teacher.network.modules())):
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == num_classes:
            return module.weight.detach().flatten(1).float().cpu()
    raise TeacherError(
        f"The dirichlet method needs a last linear layer with {num_classes} outputs; the teacher "
        f"{teacher.card.network!r} has none. Set synthesis.method: soft_target"
    )


def _draw_targets(
    config: DirichletConfig, similarity: torch.Tensor, image_indices: Sequence[int], seed: int
) -> torch.Tensor:
    """Draw one target per image from the distribution of a class, cycling through the classes."""
    rows = [_soft_target(config, similarity, int(index), seed) for index in image_indices]
    return torch.stack(rows)


def _soft_target(config: DirichletConfig, similarity: torch.Tensor, image_index: int, seed: int) -> torch.Tensor:
    num_classes = len(similarity)
    beta = config.beta_low if image_index // num_classes % 2 == 0 else config.beta_high
    # The concentration of the least similar class is 0, but a Dirichlet distribution needs positive ones.
    alpha = (beta * similarity[image_index % num_classes]).clamp_min(_SMALLEST_CONCENTRATION)
    draws = np.random.default_rng(derive_seed(seed, "target", image_index)).dirichlet(alpha.double().numpy())
    return torch.from_numpy(draws).float()
