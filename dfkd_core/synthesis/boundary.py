"""Pairs of images on the two sides of a decision boundary (CAKE): Braun, Mundt and Kersting, AISTATS 2024.

"Deep Classifier Mimicry without Data Access", arXiv 2306.02090: a classifier is determined by its decision boundary,
so the teacher's outputs on two images of different classes are pulled together while each image keeps its class:

    min  CE(y_a, softmax(z_a)) + CE(y_b, softmax(z_b)) + lambda_c * mean_k (z_a - z_b)^2
         + lambda_tv * (TV(x_a) + TV(x_b)),      z = T(x), y_a != y_b

The noise of each step is added to the teacher's input only. The paper's Langevin steps add it to the image itself, and
Adam's steps would have to undo it. The paper varies the step size between batches to place images at different
distances from the boundary; here the different starts of the images do so.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.common.seeding import normal_rows
from dfkd_core.errors import TeacherError
from dfkd_core.models.access import Access, Differentiable, Inspectable, has_access
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import NonNegative, config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, SynthesizedBatch
from dfkd_core.synthesis.descent import DescentConfig, Objective, descend
from dfkd_core.synthesis.image_losses import label_losses, one_hot_labels, total_variation

__all__ = ["BoundaryConfig", "BoundarySynthesizer", "pair_label", "whole_pairs"]


def _boundary_descent() -> DescentConfig:
    return DescentConfig(prior="procedural", iterations=30, learning_rate=0.02)


@config_section
class BoundaryConfig(MethodConfig):
    """Pairs of images on the two sides of a decision boundary (CAKE)."""

    needs: ClassVar[Access] = "gradient"
    steps_setting: ClassVar[str] = "descent"

    contrast_weight: NonNegative = 1.0
    """lambda_c, the weight of the mean squared difference between a pair's logits, which pulls the two together."""
    total_variation_weight: NonNegative = 0.1
    """lambda_tv, the weight of the mean absolute difference of neighbouring pixels, in grey levels of [0, 1]."""
    noise_std: NonNegative = 0.0
    """Standard deviation, in grey levels of [0, 1], of the noise added to the teacher's input at each step."""
    descent: DescentConfig = field(default_factory=_boundary_descent)

    def build(
        self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE
    ) -> BoundarySynthesizer:
        """Build the method for `teacher`; the feature statistics are not used.

        Raises:
            TeacherError: The teacher has a single class.
        """
        if teacher.card.num_classes < 2:
            raise TeacherError(
                "The boundary method needs a boundary, and the teacher has 1 class; at least 2 are needed. Use another "
                "teacher or set synthesis.method: soft_target"
            )
        return BoundarySynthesizer(teacher.merged() if has_access(teacher, "layers") else teacher, self)


def pair_label(image_index: int, num_classes: int) -> int:
    """Return the class of an image. Images 2p and 2p + 1 are pair p; k (k - 1) pairs in a row cover all class pairs.

    Args:
        image_index: The image's position in the whole transfer set.
        num_classes: k, at least 2.
    """
    pair, side = divmod(image_index, 2)
    first = pair % num_classes
    return (first + side * (1 + pair // num_classes % (num_classes - 1))) % num_classes


def whole_pairs(image_indices: Sequence[int]) -> list[int]:
    """Return the sorted positions of all images that form a pair with one of these: 2p is always followed by 2p + 1."""
    pairs = sorted({int(index) // 2 for index in image_indices})
    return [index for pair in pairs for index in (2 * pair, 2 * pair + 1)]


@dataclass(frozen=True, slots=True)
class BoundarySynthesizer:
    """Makes pairs of images; if only one image of a pair is requested, the pair is made and the other image dropped."""

    teacher: Differentiable
    config: BoundaryConfig

    def soft_targets(self, image_indices: Sequence[int]) -> Tensor:
        """Return the labels of these images as distributions [n, k]."""
        num_classes = self.teacher.card.num_classes
        labels = torch.tensor([pair_label(int(index), num_classes) for index in image_indices])
        return one_hot_labels(labels, num_classes)

    def objective(self, image_indices: Sequence[int], *, seed: int) -> Objective:
        """Return the objective of a batch of whole pairs; its terms are [n] each.

        The contrast of a pair is split equally between the rows of its two images.

        Args:
            image_indices: The images' positions in the whole transfer set, as `whole_pairs` returns them.
            seed: The run's seed, for the noise.
        """
        config, looks = self.config, torch.zeros(len(image_indices), dtype=torch.int64, device=self.teacher.device)
        wanted = self.soft_targets(image_indices).to(self.teacher.device)

        def losses(images: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
            seen = images
            if config.noise_std:
                indices = [image_indices[row] for row in rows.tolist()]
                # Steps are counted per image, since images may be split over several passes.
                step = int(looks[rows[0]])
                looks[rows] += 1
                noise = normal_rows(seed, f"boundary/{step}", indices, images.shape[1:])
                seen = images + config.noise_std * noise.to(images.device)
            with autocast_on_gpu(self.teacher.device):
                logits = self.teacher(seen).float()
            terms = {"label": label_losses(logits, wanted[rows], temperature=1.0)}
            if config.contrast_weight:
                terms["contrast"] = config.contrast_weight * _halved_differences(logits)
            if config.total_variation_weight:
                terms["total_variation"] = config.total_variation_weight * total_variation(images)
            return terms

        return losses

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make images, see `Synthesizer.synthesize`."""
        made = whole_pairs(image_indices)
        prior = self.config.descent.build_prior(self.teacher.card)
        images = descend(
            prior,
            prior.start(made, seed=seed),
            self.objective(made, seed=seed),
            image_indices=made,
            descent=self.config.descent,
            device=self.teacher.device,
            # A power of two, so that both images of a pair are in the same pass.
            images_per_pass=max(2, self.teacher.passes.images_per_pass(len(made), with_gradient=True)),
            on_progress=on_progress,
        )
        position = {index: row for row, index in enumerate(made)}
        wanted = [position[int(index)] for index in image_indices]
        return SynthesizedBatch(images[wanted], self.soft_targets(image_indices))


def _halved_differences(logits: Tensor) -> Tensor:
    """Return half the mean squared difference between the logits [n, k] of the pairs (0, 1), (2, 3), ..., [n]."""
    differences: Tensor = 0.5 * (logits[::2] - logits[1::2]).square().mean(1)
    return differences.repeat_interleave(2)
