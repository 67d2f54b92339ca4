"""Gaussian noise, labelled with the teacher's BatchNorm in batch mode: Raikwar and Mishra, NeurIPS 2022.

"Discovering and Overcoming Limitations of Noise-engineered Data-free Knowledge Distillation": noise shifts a network's
hidden activations away from those of training images, so a teacher that normalises by its running statistics predicts
one class for nearly all noise images. Normalised by the statistics of the noise batch, the activations return to the
range that its weights expect.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dfkd_core.common.seeding import normal_rows
from dfkd_core.errors import SynthesisError
from dfkd_core.models.access import Access, Inspectable
from dfkd_core.models.layers import BatchNorm
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import Positive, config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, SynthesizedBatch
from dfkd_core.synthesis.batch_norm import batch_norm_layers, normalising_by_batch

__all__ = ["NoiseEngineeredConfig", "NoiseEngineeredSynthesizer"]


@config_section
class NoiseEngineeredConfig(MethodConfig):
    """Gaussian noise with labels from the teacher's BatchNorm in batch mode.

    The stored outputs depend on the whole batch, so `batch_size` matters: it should be at least ten times the number of
    classes and divide `images_per_shard`. Distil without augmentation: augmented images are labelled again by the
    unmodified teacher.
    """

    needs: ClassVar[Access] = "layers"

    std: Positive = 0.25
    """Standard deviation of a pixel around mid-grey, before it is clamped to [0, 1]."""

    @property
    def couples_images(self) -> bool:
        """BatchNorm normalises by the batch."""
        return True

    def build(
        self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE
    ) -> NoiseEngineeredSynthesizer:
        """Build the method for `teacher`; the feature statistics are not used.

        Raises:
            TeacherError: The teacher has no BatchNorm.
        """
        return NoiseEngineeredSynthesizer(teacher, self, batch_norm_layers(teacher, method="noise_engineered"))


@dataclass(frozen=True, slots=True)
class NoiseEngineeredSynthesizer:
    """Draws noise; the soft target of an image is the output of the teacher in batch mode."""

    teacher: Inspectable
    config: NoiseEngineeredConfig
    layers: tuple[BatchNorm, ...]

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """Return the teacher's logits with its BatchNorm normalising by these images, see `Labelling`.

        Raises:
            SynthesisError: The images do not fit into memory at once.
        """
        self.teacher.passes.check_whole(
            len(images),
            with_gradient=False,
            method="noise_engineered",
            setting="synthesis.batch_size",
            error=SynthesisError,
        )
        inputs = images.to(self.teacher.device).contiguous(memory_format=torch.channels_last)
        with normalising_by_batch(self.layers):
            return self.teacher(inputs).float().cpu()

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make images, see `Synthesizer.synthesize`."""
        noise = normal_rows(seed, "prior", image_indices, self.teacher.card.image_shape)
        images = (0.5 + self.config.std * noise).clamp(0, 1)
        return SynthesizedBatch(images, self.label(images).softmax(1))
