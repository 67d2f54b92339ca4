"""One shard of a transfer set: the unit that is made at once, resumed and run in parallel.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dfkd_core.errors import SynthesisError
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.synthesis.base import Synthesizer
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.teacher import Teacher
from dfkd_core.transfer_set import Shard, quantise

__all__ = ["num_shards", "shard_indices", "synthesize_shard"]

_COLLAPSE_IMAGES_PER_CLASS = 10


def num_shards(config: SynthesisConfig) -> int:
    """Return the number of shards that hold `config.num_images` images."""
    return -(-config.num_images // config.images_per_shard)


def shard_indices(config: SynthesisConfig, shard_index: int) -> range:
    """Return the positions in the whole set of the images of the shard at `shard_index`."""
    first = shard_index * config.images_per_shard
    return range(first, min(first + config.images_per_shard, config.num_images))


def synthesize_shard(
    synthesizer: Synthesizer,
    teacher: Teacher,
    *,
    shard_index: int,
    config: SynthesisConfig,
    seed: int,
    on_progress: OnProgress = ignore,
) -> Shard:
    """Make the images of one shard and label them.

    The teacher's logits are those of the stored, quantised images: what a student sees is what was labelled. A shard's
    bytes depend on the seed, the configuration and its index, not on which other shards are made or by whom.

    Args:
        synthesizer: Makes the images.
        teacher: Labels them.
        shard_index: Which shard, from 0.
        config: Layout of the set.
        seed: The run's seed.
        on_progress: Is told how many of the shard's images are done.

    Raises:
        SynthesisError: A loss, an image or a logit is not finite, or the teacher gives all images one class; names
            the shard.
    """
    indices = shard_indices(config, shard_index)
    assert len(indices), f"shard {shard_index} of {num_shards(config)} does not exist"
    images, soft_targets, logits = [], [], []
    for batch in _batches(indices, config.batch_size):
        report = _shifted(on_progress, batch.start - indices.start, len(indices))
        try:
            made = synthesizer.synthesize(batch, seed=seed, on_progress=report)
        except SynthesisError as error:
            raise SynthesisError(f"Shard {shard_index}: {error}") from error
        _check_finite("images", made.images, shard_index, batch)
        images.append(quantise(made.images))
        soft_targets.append(made.soft_targets.float())
        logits.append(_label(teacher, images[-1]))
        _check_finite("teacher logits", logits[-1], shard_index, batch)
    shard = Shard(
        images=torch.cat(images),
        teacher_logits=torch.cat(logits),
        soft_targets=torch.cat(soft_targets),
        image_index=torch.tensor(indices),
    )
    _check_collapse(shard, shard_index, config)
    return shard


def _batches(indices: range, batch_size: int) -> Iterator[range]:
    for first in range(indices.start, indices.stop, batch_size):
        yield range(first, min(first + batch_size, indices.stop))


def _shifted(on_progress: OnProgress, done_before: int, total: int) -> OnProgress:
    """Return a callback that turns the progress of a batch into that of the shard."""

    def report(progress: Progress) -> None:
        done = done_before + progress.done
        on_progress(Progress(stage="synthesize", done=done, total=total, unit="images", metrics=progress.metrics))

    return report


@torch.no_grad()
def _label(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
    """Return the teacher's logits, float32 [n, k] on the CPU, for stored images uint8 [n, c, h, w]."""
    inputs = (images.to(teacher.device).float() / 255).contiguous(memory_format=torch.channels_last)
    return teacher(inputs).float().cpu()


def _check_finite(what: str, values: torch.Tensor, shard_index: int, batch: range) -> None:
    bad = int((~torch.isfinite(values.flatten(1)).all(1)).sum())
    if bad:
        raise SynthesisError(
            f"Shard {shard_index}: {what} of {bad} of the images {batch.start} to {batch.stop - 1} hold NaN or Inf. "
            f"Lower the method's learning_rate or check the teacher's weights."
        )


def _check_collapse(shard: Shard, shard_index: int, config: SynthesisConfig) -> None:
    num_images, num_classes = shard.teacher_logits.shape
    predicted = shard.teacher_logits.argmax(1)
    if (
        num_classes > 1
        and num_images >= _COLLAPSE_IMAGES_PER_CLASS * num_classes
        and bool((predicted == predicted[0]).all())
    ):
        raise SynthesisError(
            f"Shard {shard_index}: the teacher gives all {num_images} images the class {int(predicted[0])} of "
            f"{num_classes}, so a student cannot learn the others. {_advice(config)}"
        )


def _advice(config: SynthesisConfig) -> str:
    if config.method == "noise":
        return "Set synthesis.method to soft_target or raise synthesis.methods.noise.std."
    return (
        f"Raise synthesis.methods.{config.method}.refinement.iterations or change its prior "
        f"(synthesis.methods.{config.method}.refinement.prior)."
    )
