"""DeepInversion: Yin et al., "Dreaming to Distill", CVPR 2020, arXiv 1912.08795.

Images of given classes whose activations match the running statistics of the teacher's BatchNorm layers:

    min_X  mean_i CE(y_i, softmax(T(x_i) / tau)) + lambda_bn * sum_l (|mu_l(X) - mu_l| + |var_l(X) - var_l|)
           + lambda_tv * mean_i TV(x_i) + lambda_l2 * mean_i |x_i|^2

mu_l(X), var_l(X): moments over the batch X of the input of BatchNorm layer l; |.| is the Euclidean norm over channels.
The first two terms are equations 1 and 4 of the paper; TV and the squared norm are means over pixels here, so that
their weights do not depend on the image size.

n images of a batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.errors import SynthesisError
from dfkd_core.models.access import Access, Inspectable
from dfkd_core.models.layers import BatchNorm
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import NonNegative, Positive, config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, SynthesizedBatch
from dfkd_core.synthesis.batch_norm import batch_norm_layers, recording_distances
from dfkd_core.synthesis.descent import DescentConfig, Objective, descend
from dfkd_core.synthesis.image_losses import label_losses, one_hot_labels, squared_norms, total_variation

__all__ = ["InversionConfig", "InversionSynthesizer"]


def _inversion_descent() -> DescentConfig:
    return DescentConfig(prior="pixels", iterations=100, learning_rate=0.05)


@config_section
class InversionConfig(MethodConfig):
    """Images of given classes that match BatchNorm's running statistics (DeepInversion).

    The moments are computed over a batch, so an image depends on its batch and `batch_size` matters: it should be at
    least ten times the number of classes and divide `images_per_shard`. The same batch yields the same bytes.
    """

    needs: ClassVar[Access] = "layers"
    steps_setting: ClassVar[str] = "descent"

    temperature: Positive = 1.0
    """Temperature of the teacher outputs compared with the labels."""
    batch_norm_weight: NonNegative = 10.0
    """lambda_bn, the weight of the distance between the moments of a batch and BatchNorm's running statistics."""
    total_variation_weight: NonNegative = 1.0
    """lambda_tv, the weight of the mean absolute difference of neighbouring pixels, in grey levels of [0, 1]."""
    squared_norm_weight: NonNegative = 0.0
    """lambda_l2, the weight of the mean square of the normalised pixels."""
    descent: DescentConfig = field(default_factory=_inversion_descent)

    @property
    def couples_images(self) -> bool:
        """The moments are those of a batch."""
        return True

    @property
    def target_temperature(self) -> float:
        """Temperature of the teacher's output."""
        return self.temperature

    def build(
        self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE
    ) -> InversionSynthesizer:
        """Build the method for `teacher`; the feature statistics are not used.

        Raises:
            TeacherError: The teacher has no BatchNorm.
        """
        return InversionSynthesizer(teacher, self, batch_norm_layers(teacher, method="inversion"))


@dataclass(frozen=True, slots=True)
class InversionSynthesizer:
    """Makes images of each class in turn: image i has class i mod k."""

    teacher: Inspectable
    config: InversionConfig
    layers: tuple[BatchNorm, ...]

    def soft_targets(self, image_indices: Sequence[int]) -> Tensor:
        """Return the labels of these images as distributions [n, k]."""
        num_classes = self.teacher.card.num_classes
        labels = torch.tensor([int(index) % num_classes for index in image_indices])
        return one_hot_labels(labels, num_classes)

    def objective(self, soft_targets: Tensor) -> Objective:
        """Return the objective of a batch with the labels `soft_targets` [n, k]; its terms are [n] each.

        Every row contains the BatchNorm term of the whole batch. The sum of all rows is therefore n times the loss of
        the paper, whose label term is a mean over images.
        """
        config, card, wanted = self.config, self.teacher.card, soft_targets.to(self.teacher.device)
        mean, std = (torch.tensor(values, device=wanted.device).view(1, -1, 1, 1) for values in (card.mean, card.std))

        def losses(images: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
            with autocast_on_gpu(self.teacher.device), recording_distances(self.layers) as distances:
                logits = self.teacher(images)
            terms = {"label": label_losses(logits, wanted[rows], temperature=config.temperature)}
            if config.batch_norm_weight:
                terms["batch_norm"] = (config.batch_norm_weight * torch.stack(distances).sum()).expand(len(images))
            if config.total_variation_weight:
                terms["total_variation"] = config.total_variation_weight * total_variation(images)
            if config.squared_norm_weight:
                terms["squared_norm"] = config.squared_norm_weight * squared_norms(images, mean=mean, std=std)
            return terms

        return losses

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make images, see `Synthesizer.synthesize`; they depend on each other.

        Raises:
            SynthesisError: A loss is not finite, or the images do not fit into memory at once.
        """
        self.teacher.passes.check_whole(
            len(image_indices),
            with_gradient=True,
            method="inversion",
            setting="synthesis.batch_size",
            error=SynthesisError,
        )
        targets = self.soft_targets(image_indices)
        prior = self.config.descent.build_prior(self.teacher.card)
        images = descend(
            prior,
            prior.start(image_indices, seed=seed),
            self.objective(targets),
            image_indices=image_indices,
            descent=self.config.descent,
            device=self.teacher.device,
            on_progress=on_progress,
        )
        return SynthesizedBatch(images, targets)
