"""A step of distillation: its batch, its loss and the memory it takes.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.common.pixels import load_batch, move_batch
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.disagreement import seek_disagreement
from dfkd_core.distillation.feature_matching import FeatureMatcher
from dfkd_core.distillation.mixing import mix
from dfkd_core.distillation.soft_labels import distillation_loss
from dfkd_core.distillation.students import student_card
from dfkd_core.errors import DistillationError
from dfkd_core.models.classifier import Classifier, build_classifier
from dfkd_core.models.layers import forward_with_outputs
from dfkd_core.models.passes import PROBED_SIZES, WHOLE_SHARE, PassCost, gibibytes, joined, measure_cost
from dfkd_core.models.teacher import Teacher
from dfkd_core.training.augmentation import augment

__all__ = ["LabelledBatch", "batch_loader", "build_matcher", "check_memory", "step_cost", "step_terms"]

# Copies of the weights that an optimizer keeps: Adam's two moments.
_MOMENTS = 2


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Images as the student sees them and what the teacher says of them."""

    images: Tensor
    """float32 [n, c, h, w] in [0, 1]."""
    logits: Tensor
    """float32 [n, k]."""
    outputs: list[Tensor]
    """The teacher's outputs at the matched layers, each [n, ...]; empty where none is matched."""


def build_matcher(
    teacher: Teacher, student: Classifier, config: DistillationConfig, *, seed: int, device: torch.device
) -> FeatureMatcher | None:
    """Return what compares inner outputs, its learned map drawn from `seed`; None where they do not count."""
    if not config.feature_weight:
        return None
    return FeatureMatcher(teacher, student, seed=seed).to(device)


def batch_loader(
    teacher: Teacher,
    images: Rows,
    teacher_logits: Rows,
    matcher: FeatureMatcher | None,
    config: DistillationConfig,
    device: torch.device,
) -> Callable[[Tensor, torch.Generator], LabelledBatch]:
    """Return what makes a batch of the images at some positions; it looks at the teacher and never at the student.

    Args:
        teacher: Labels the batches where `config.asks_teacher`.
        images: uint8 images [n, c, h, w].
        teacher_logits: Stored logits [n, k], the labels where the teacher is not asked.
        matcher: Names the teacher's layers whose outputs a batch holds; None for none.
        config: How images are moved and mixed.
        device: Where the batches go.
    """
    paths = matcher.teacher_paths if matcher else ()

    @torch.no_grad()
    def load(positions: Tensor, generator: torch.Generator) -> LabelledBatch:
        batch = load_batch(images, positions, device)
        if not config.asks_teacher:
            logits = teacher_logits[positions.to(teacher_logits.device)]
            return LabelledBatch(batch, move_batch(logits, device).float(), [])
        batch = augment(batch, config.augmentation, generator)
        batch = mix(batch, config.mixing, generator)
        return _labelled(teacher, paths, batch)

    return load


@torch.no_grad()
def _labelled(teacher: Teacher, paths: Sequence[str], images: Tensor) -> LabelledBatch:
    """Return images [n, c, h, w] with the teacher's logits and inner outputs, on the images' device."""
    with autocast_on_gpu(images.device):
        parts = teacher.passes.split(images.to(teacher.device))
        passes = [teacher.forward_with_outputs(paths, part) for part in parts]
    logits = joined([logits for logits, _ in passes]).to(images.device).float()
    outputs = [joined(list(of_layer)).to(images.device) for of_layer in zip(*(outputs for _, outputs in passes))]
    return LabelledBatch(images, logits, outputs)


def step_terms(
    teacher: Teacher, student: Classifier, matcher: FeatureMatcher | None, config: DistillationConfig
) -> Callable[[LabelledBatch], dict[str, Tensor]]:
    """Return the function from a batch to the named terms of its loss, scalars that add up to it.

    Args:
        teacher: Labels the images that are moved to where the networks disagree.
        student: The network in training.
        matcher: Compares inner outputs; None for none.
        config: Temperature of the soft labels and weights of the terms.
    """
    paths = matcher.student_paths if matcher else ()
    teacher_paths = matcher.teacher_paths if matcher else ()

    def disputed(batch: LabelledBatch) -> LabelledBatch:
        """Return the batch with its first images moved to where the networks disagree, and labelled there."""
        count = round(config.disagreement.share * len(batch.images))
        if not count:
            return batch
        chosen, temperature = batch.images[:count], config.temperature
        moved = seek_disagreement(teacher, student, chosen, config.disagreement, temperature=temperature)
        labelled = _labelled(teacher, teacher_paths, moved)
        pairs = zip(labelled.outputs, batch.outputs, strict=True)
        return LabelledBatch(
            torch.cat([moved, batch.images[count:]]),
            torch.cat([labelled.logits, batch.logits[count:]]),
            [torch.cat([new, old[count:]]) for new, old in pairs],
        )

    def terms(batch: LabelledBatch) -> dict[str, Tensor]:
        batch = disputed(batch)
        with autocast_on_gpu(batch.images.device):
            logits, outputs = forward_with_outputs(student, paths, batch.images)
        found = {"kl": distillation_loss(logits.float(), batch.logits, temperature=config.temperature)}
        if matcher:
            found["features"] = config.feature_weight * matcher(outputs, batch.outputs)
        return found

    return terms


def check_memory(cost: PassCost, config: DistillationConfig, *, num_images: int, memory: int) -> None:
    """Check that a batch fits, which cannot be split: BatchNorm and the loss are about all of it.

    Args:
        cost: What a step takes, from `step_cost`.
        config: How to train.
        num_images: Images of the transfer set.
        memory: Bytes at hand.

    Raises:
        DistillationError: It does not; names the largest batch that does.
    """
    count = min(config.batch_size, num_images)
    if cost.of(count) <= WHOLE_SHARE * memory:
        return
    fitting = cost.most_images(WHOLE_SHARE * memory)
    remedy = f"Set distillation.batch_size: {fitting}" if fitting > 1 else "Not even 2 fit: choose a smaller student"
    raise DistillationError(
        f"A step of {config.student} on {count} images takes about {gibibytes(cost.of(count))}, and "
        f"{gibibytes(WHOLE_SHARE * memory)} of the {gibibytes(memory)} at hand may be used. {remedy}, free memory or "
        "raise execution.memory_gib"
    )


def step_cost(
    teacher: Teacher,
    images: Rows,
    teacher_logits: Rows,
    config: DistillationConfig,
    *,
    seed: int,
    device: torch.device,
    prefetch: int,
) -> PassCost:
    """Measure what a step takes, with the batches that wait for it, on a student that is thrown away."""
    # What is moved to where the networks disagree goes through in parts.
    config = dataclasses.replace(config, disagreement=dataclasses.replace(config.disagreement, share=0.0))
    student = build_classifier(student_card(teacher.card, config), seed=seed).to(device).train()
    matcher = build_matcher(teacher, student, config, seed=seed, device=device)
    load = batch_loader(teacher, images, teacher_logits, matcher, config, device)
    # The same image several times: there may be fewer.
    batches = {n: load(torch.zeros(n, dtype=torch.int64), derive_generator(seed, "memory")) for n in PROBED_SIZES}
    terms = step_terms(teacher, student, matcher, config)

    def step(num_images: int) -> None:
        torch.autograd.backward(torch.stack(tuple(terms(batches[num_images]).values())).sum())

    # Dropout draws from the global generators.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        measured = measure_cost(step, device)
    batch = next(iter(batches.values()))
    waiting = sum(tensor.nbytes for tensor in (batch.images, batch.logits, *batch.outputs)) // len(batch.images)
    optimizer = _MOMENTS * sum(parameter.nbytes for parameter in student.parameters())
    return PassCost(measured.fixed + optimizer, measured.per_image + (prefetch + 1) * waiting)
