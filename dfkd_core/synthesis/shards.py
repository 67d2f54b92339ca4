"""Synthesis of one shard of a transfer set, the unit of resumption and of parallel work.

n images, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from dfkd_core.common.pixels import dequantise, quantise
from dfkd_core.errors import SynthesisError
from dfkd_core.models.access import Labeller
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.synthesis.base import Labelling, Synthesizer
from dfkd_core.synthesis.guards import check_finite, check_shard
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.transfer_set.shards import Shard

__all__ = ["images_at_once", "num_shards", "shard_indices", "synthesize_shard"]

# Most grey levels in a GPU's batch: its images are drawn on the CPU, where each level takes four bytes.
_MOST_VALUES_AT_ONCE = 2**26


def num_shards(config: SynthesisConfig) -> int:
    """Return the number of shards that hold `config.num_images` images."""
    return -(-config.num_images // config.images_per_shard)


def shard_indices(config: SynthesisConfig, shard_index: int) -> range:
    """Return the positions in the whole set of the images in the shard at `shard_index`."""
    first = shard_index * config.images_per_shard
    return range(first, min(first + config.images_per_shard, config.num_images))


def synthesize_shard(
    synthesizer: Synthesizer,
    teacher: Labeller,
    *,
    shard_index: int,
    config: SynthesisConfig,
    seed: int,
    on_progress: OnProgress = ignore,
) -> Shard:
    """Make the images of one shard and label them.

    The logits are computed on the stored, quantised images, which are the ones that the student is trained on. If the
    synthesizer has a `label` method, it labels the images instead of the teacher. A shard's bytes depend only on the
    teacher, the seed, the configuration and its index, not on the other shards or the process that makes it.

    Args:
        synthesizer: Makes the images.
        teacher: Labels them.
        shard_index: Which shard, from 0.
        config: Layout of the set.
        seed: The run's seed.
        on_progress: Called with the number of the shard's images that are done.

    Raises:
        SynthesisError: A loss, an image or a logit is not finite, or a student could not learn from the shard, see
            `check_shard`; names the shard.

    Example:
        >>> from dfkd_core import ModelCard, StatisticsConfig, SynthesisConfig, Teacher
        >>> from dfkd_core import build_classifier, build_synthesizer, estimate_statistics, synthesize_shard
        >>> size = {"in_channels": 1, "image_size": 32, "num_classes": 10}
        >>> card = ModelCard(network="lenet5", mean=(0.5,), std=(0.25,), layer="fc1", **size)
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> statistics = estimate_statistics(teacher, StatisticsConfig(spread="sigma"), seed=0)
        >>> config = SynthesisConfig(method="boundary", num_images=20, images_per_shard=8)
        >>> synthesizer = build_synthesizer(config, teacher, statistics)
        >>> shard = synthesize_shard(synthesizer, teacher, shard_index=2, config=config, seed=0)
        >>> shard.images.shape, shard.images.dtype, shard.image_index.tolist()
        (torch.Size([4, 1, 32, 32]), torch.uint8, [16, 17, 18, 19])
    """
    indices = shard_indices(config, shard_index)
    assert len(indices), f"shard {shard_index} of {num_shards(config)} does not exist"
    # Filled batch by batch: joining a list of batches would hold all images twice.
    images = torch.empty(len(indices), *teacher.card.image_shape, dtype=torch.uint8)
    soft_targets, logits = [], []
    size = images_at_once(config, num_images=len(indices), image_shape=teacher.card.image_shape, device=teacher.device)
    for batch in _batches(indices, size):
        report = _BatchProgress(on_progress, batch, indices)
        try:
            made = synthesizer.synthesize(batch, seed=seed, on_progress=report)
        except SynthesisError as error:
            raise SynthesisError(f"Shard {shard_index}: {error}") from error
        check_finite("images", made.images, shard_index=shard_index, image_indices=batch)
        stored = images[batch.start - indices.start : batch.stop - indices.start]
        stored.copy_(quantise(made.images))
        soft_targets.append(made.soft_targets.float())
        logits.append(_label(synthesizer, teacher, stored))
        check_finite("teacher logits", logits[-1], shard_index=shard_index, image_indices=batch)
        report.finish()
    shard = Shard(
        images=images,
        teacher_logits=torch.cat(logits),
        soft_targets=torch.cat(soft_targets),
        image_index=torch.tensor(indices),
    )
    check_shard(shard, shard_index=shard_index, config=config)
    return shard


def images_at_once(
    config: SynthesisConfig, *, num_images: int, image_shape: tuple[int, int, int], device: torch.device
) -> int:
    """Return the batch size: `config.batch_size`, or on a GPU, which needs many images, that of the whole shard.

    Args:
        config: How the set is made. If images in a batch depend on each other, its `batch_size` also applies on a GPU.
        num_images: Number of images in the shard.
        image_shape: Shape (c, h, w) of one image.
        device: Where the images are refined.
    """
    if device.type != "cuda" or config.method_config.couples_images:
        return config.batch_size
    most = _MOST_VALUES_AT_ONCE // math.prod(image_shape)
    return min(num_images, max(config.batch_size, most))


def _batches(indices: range, batch_size: int) -> Iterator[range]:
    for first in range(indices.start, indices.stop, batch_size):
        yield range(first, min(first + batch_size, indices.stop))


class _BatchProgress:
    """Converts the progress of a batch into that of its shard."""

    def __init__(self, on_progress: OnProgress, batch: range, indices: range) -> None:
        self._on_progress, self._batch, self._indices = on_progress, batch, indices
        self._metrics: Mapping[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        self._metrics = progress.metrics
        self._report(len(self._batch) * progress.done // progress.total)

    def finish(self) -> None:
        self._report(len(self._batch))

    def _report(self, done: int) -> None:
        done += self._batch.start - self._indices.start
        total = len(self._indices)
        self._on_progress(Progress(stage="synthesize", done=done, total=total, unit="images", metrics=self._metrics))


@torch.no_grad()
def _label(synthesizer: Synthesizer, teacher: Labeller, images: torch.Tensor) -> torch.Tensor:
    """Return the teacher's logits, float32 [n, k] on the CPU, for stored images uint8 [n, c, h, w]."""
    inputs = dequantise(images.to(teacher.device), memory_format=torch.channels_last)
    if isinstance(synthesizer, Labelling):
        return synthesizer.label(inputs)
    return teacher.label(inputs).cpu()
