"""A transfer set and its student in one call, without files: for notebooks, trials and measurements."""

from __future__ import annotations

from dataclasses import fields

import torch

from dfkd_core.common.compute import Compute
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.models.access import Labeller
from dfkd_core.models.classifier import Classifier
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer, prepare_method
from dfkd_core.synthesis.shards import num_shards, synthesize_shard
from dfkd_core.transfer_set.shards import Shard

__all__ = ["make_student", "make_transfer_set"]


def make_transfer_set(
    teacher: Labeller, statistics: FeatureStatistics | None, config: SynthesisConfig, *, seed: int
) -> Shard:
    """Synthesize a whole transfer set in this process: the images of the pipeline's stages, as one shard.

    Args:
        teacher: Labels the images; they are computed on its device.
        statistics: The teacher's feature statistics.
        config: Settings of the transfer set, which has to fit into memory.
        seed: Seed of every random draw.

    Raises:
        SynthesisError: A student could not learn from the images, see `dfkd_core.synthesis.guards.check_shard`.

    Example:
        >>> from dfkd_core import ModelCard, StatisticsConfig, SynthesisConfig
        >>> from dfkd_core import Teacher, build_classifier, estimate_statistics, make_transfer_set
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
        >>> shard = make_transfer_set(teacher, statistics, SynthesisConfig(method="noise", num_images=20), seed=0)
        >>> shard.images.shape, shard.teacher_logits.shape
        (torch.Size([20, 1, 32, 32]), torch.Size([20, 10]))
    """
    state = prepare_method(config, teacher, statistics, seed=seed)
    synthesizer = build_synthesizer(config, teacher, statistics, state)
    shards = [
        synthesize_shard(synthesizer, teacher, shard_index=index, config=config, seed=seed)
        for index in range(num_shards(config))
    ]
    return Shard(**{field.name: torch.cat([getattr(shard, field.name) for shard in shards]) for field in fields(Shard)})


def make_student(
    teacher: Labeller,
    statistics: FeatureStatistics | None,
    synthesis: SynthesisConfig,
    distillation: DistillationConfig,
    *,
    seed: int,
    prefetch: int = 0,
) -> Classifier:
    """Synthesize and distil in this process; the result equals the student of the pipeline's stages.

    Args:
        teacher: Labels the images; the student is computed on its device.
        statistics: The teacher's feature statistics.
        synthesis: Settings of the transfer set, which has to fit into memory.
        distillation: Settings of the student's training.
        seed: Seed of every random draw.
        prefetch: Batches that a second thread labels ahead, about 2; does not change the result.

    Raises:
        ConfigError: The student's network rejects the image size.
        SynthesisError: A student could not learn from the images, see `dfkd_core.synthesis.guards.check_shard`.
        DistillationError: The loss is not finite.

    Example:
        >>> from dfkd_core import DistillationConfig, ModelCard, StatisticsConfig
        >>> from dfkd_core import SynthesisConfig, Teacher, build_classifier, estimate_statistics, make_student
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
        >>> synthesis = SynthesisConfig(method="noise", num_images=20)
        >>> training = DistillationConfig(student="lenet5_half", epochs=1)
        >>> make_student(teacher, statistics, synthesis, training, seed=0).card.network
        'lenet5_half'
    """
    made = make_transfer_set(teacher, statistics, synthesis, seed=seed)
    return distill_images(
        teacher,
        made.images,
        made.teacher_logits,
        distillation,
        seed=seed,
        compute=Compute(device=teacher.device, prefetch=prefetch),
    ).student
