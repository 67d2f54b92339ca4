"""Training of a student on a transfer set and the teacher's outputs on it, without labels.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dfkd_core.common.compute import CPU, Compute
from dfkd_core.common.digests import json_digest
from dfkd_core.common.rows import Rows, kept_on_gpu
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.feature_matching import FeatureMatcher
from dfkd_core.distillation.steps import DistillationStep, check_memory, step_cost
from dfkd_core.distillation.students import Start, UntrainedStudent, build_student, drawn_student, student_card
from dfkd_core.errors import DistillationError, TransferSetError
from dfkd_core.models.access import Inspectable, Labeller, require_access
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.layers import BatchNorm
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.training.checkpoints import (
    CHECKPOINT_FORMAT,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    save_checkpoint,
)
from dfkd_core.training.loop import EpochRecord, Schedule, build_optimizer, run_epochs
from dfkd_core.transfer_set.reader import TransferSet

__all__ = ["DistillationResult", "distill", "distill_images"]


_LESS_ACCESS = (
    "Set distillation.feature_weight: 0 (labels alone count), distillation.start: random and "
    "distillation.disagreement.share: 0"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """A trained student and the record of its training."""

    student: Classifier
    """The student of the last epoch, in eval mode on the CPU."""
    history: tuple[EpochRecord, ...]
    """One record per epoch, including those before a resumption."""
    start: Start
    """The kind of the first weights."""
    notes: tuple[str, ...]
    """Why the student is no copy of its teacher if it was to be one, and which layers could not be compared."""


def distill(
    teacher: Labeller,
    transfer_set: TransferSet,
    config: DistillationConfig,
    *,
    seed: int,
    compute: Compute = CPU,
    checkpoint: Path | None = None,
    on_progress: OnProgress = ignore,
) -> DistillationResult:
    """Train a student on a transfer set; the student of the last epoch is returned.

    Other arguments, result and errors are those of `distill_images`.

    Raises:
        TransferSetError: The transfer set was made with another teacher.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dfkd_core import DistillationConfig, ModelCard, Teacher, TransferSet, build_classifier, distill
        >>> from dfkd_core import write_manifest, write_shard
        >>> from dfkd_core.transfer_set.shards import Shard
        >>> size = {"in_channels": 1, "image_size": 32, "num_classes": 10}
        >>> card = ModelCard(network="lenet5", mean=(0.5,), std=(0.25,), layer="fc1", **size)
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> images = torch.randint(0, 256, (16, *card.image_shape), dtype=torch.uint8)
        >>> logits = teacher.label(images / 255)
        >>> shard = Shard(
        ...     images=images, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(16)
        ... )
        >>> made_with = {"teacher_digest": teacher.digest, "statistics_digest": None, "code_version": "", "seed": 0}
        >>> with TemporaryDirectory() as name:
        ...     records = [write_shard(Path(name) / "shard-00000.safetensors", shard)]
        ...     _ = write_manifest(
        ...         Path(name), method="noise", method_config={}, temperature=1.0, shards=records, **made_with
        ...     )
        ...     result = distill(teacher, TransferSet(Path(name)), DistillationConfig(epochs=1), seed=0)
        >>> result.student.card.network
        'lenet5_half'
    """
    made_with = transfer_set.manifest.teacher_digest
    if made_with != teacher.digest:
        raise TransferSetError(
            f"The transfer set in {transfer_set.folder} belongs to teacher {made_with}, but this teacher is "
            f"{teacher.digest}. Make a set for it with: dfkd synthesize"
        )
    return distill_images(
        teacher,
        transfer_set.images,
        transfer_set.teacher_logits,
        config,
        key=json_digest(transfer_set.manifest),
        seed=seed,
        compute=compute,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )


def distill_images(
    teacher: Labeller,
    images: Rows,
    teacher_logits: Rows,
    config: DistillationConfig,
    *,
    seed: int,
    key: str = "",
    compute: Compute = CPU,
    checkpoint: Path | None = None,
    on_progress: OnProgress = ignore,
) -> DistillationResult:
    """Train a student on images and the teacher's logits; the student of the last epoch is returned.

    On a CPU with the same number of threads, a run resumed from `checkpoint` ends with the same bits as an
    uninterrupted run. A set in files may exceed the memory: batches are read one by one, unless the set fits into a
    quarter of a GPU's free memory. On a GPU, a step is recorded once and replayed, see `common.cuda_graphs`.

    Args:
        teacher: Labels the batches if `config.asks_teacher`; the student's card is derived from the teacher's.
        images: uint8 images [n, c, h, w].
        teacher_logits: The teacher's logits [n, k] on these images, the labels if the teacher is not queried.
        config: How to train.
        seed: Seed of the first weights, the shuffles, the augmentation and the mixing.
        key: Identifies the image set in `checkpoint`, for example a digest.
        compute: Where to compute, and how many batches are labelled ahead.
        checkpoint: File to resume from and to save to. If it is truncated or belongs to another configuration, image
            set, teacher or seed, it is ignored and replaced.
        on_progress: Called after each epoch.

    Raises:
        ConfigError: The student's network rejects the image size.
        DistillationError: There are no images, the logits do not fit them, a batch does not fit into memory, there
            is no space for the views, the loss is not finite, or the checkpoint cannot be written.

    Example:
        >>> import torch
        >>> from dfkd_core import DistillationConfig, ModelCard, Teacher, build_classifier, distill_images
        >>> size = {"in_channels": 1, "image_size": 32, "num_classes": 10}
        >>> card = ModelCard(network="lenet5", mean=(0.5,), std=(0.25,), layer="fc1", **size)
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> images = torch.randint(0, 256, (16, *card.image_shape), dtype=torch.uint8)
        >>> config = DistillationConfig(student="lenet5@0.5", epochs=2)
        >>> result = distill_images(teacher, images, teacher.label(images / 255), config, seed=0)
        >>> result.start, len(result.history), result.student.card.network, result.notes
        ('pruned', 2, 'lenet5@0.5', ())
    """
    _check_inputs(teacher, images, teacher_logits)
    require_access(teacher, config.needs, by="The distillation", remedy=_LESS_ACCESS)
    device = torch.device(compute.device)
    cost = step_cost(teacher, images, teacher_logits, config, seed=seed, device=device, prefetch=compute.prefetch)
    network = student_card(teacher.card, config).network
    check_memory(cost, config, network=network, num_images=len(images), memory=teacher.memory)
    images, teacher_logits = kept_on_gpu(images, device), kept_on_gpu(teacher_logits, device)
    key = _checkpoint_key(config, teacher=teacher.digest, images=key, seed=seed)
    found = read_checkpoint(checkpoint, key) if checkpoint else None
    untrained = _resumed(found, teacher, config, seed) if found else build_student(teacher, images, config, seed=seed)
    student, start = untrained.classifier, untrained.start
    step = DistillationStep(teacher, student.to(device), images, teacher_logits, config, seed=seed, device=device)
    if step.matcher and start == "pruned" and found is None:
        step.matcher.fit_map(cast(Inspectable, teacher), student, images)
    trainee = _Trainee(untrained, step.matcher, config)
    step.merge_teacher()
    schedule, folder = _schedule(config, len(images)), checkpoint.parent if checkpoint else None
    step.store_views(schedule, seed=seed, memory=teacher.memory, folder=folder)
    history = trainee.resume(found) if found else []
    _report(on_progress, history, config.epochs)
    for record in run_epochs(
        trainee.trained,
        trainee.optimizer,
        step,
        schedule,
        seed=seed,
        error=DistillationError,
        first_epoch=len(history) + 1,
        prefetch=compute.prefetch,
    ):
        history.append(record)
        if checkpoint and (record.epoch % config.checkpoint_every_epochs == 0 or record.epoch == config.epochs):
            save_checkpoint(checkpoint, key, Checkpoint(parts=trainee.parts(), history=history))
        _report(on_progress, history, config.epochs)
    notes = (*_start_notes(untrained), *step.notes)
    return DistillationResult(student=trainee.result(), history=tuple(history), start=start, notes=notes)


def _start_notes(untrained: UntrainedStudent) -> Iterator[str]:
    if untrained.reason:
        yield (
            f"The student started from random weights, not as a thinner copy of the teacher: {untrained.reason}. "
            "distillation.start: pruned makes this an error, and random does not try"
        )


def _resumed(found: Checkpoint, teacher: Labeller, config: DistillationConfig, seed: int) -> UntrainedStudent:
    """Return the student, whose weights the checkpoint will replace, and how it had started."""
    start, _, reason = bytes(found.parts["start"]["text"].tolist()).decode().partition(" ")
    return UntrainedStudent(drawn_student(teacher.card, config, seed=seed), cast(Start, start), reason)


def _schedule(config: DistillationConfig, num_images: int) -> Schedule:
    return Schedule(
        num_images=num_images,
        batch_size=config.batch_size,
        epochs=config.epochs,
        warmup_fraction=config.warmup_fraction,
    )


class _Trainee:
    """The student, the other modules that are trained with it, and their optimizer."""

    def __init__(self, untrained: UntrainedStudent, matcher: FeatureMatcher | None, config: DistillationConfig) -> None:
        self._student = student = untrained.classifier
        self._start = f"{untrained.start} {untrained.reason}"
        self._parts = {"network": student.network} | ({"matcher": matcher} if matcher else {})
        parts = [student] if matcher is None else [student, matcher]
        # The BatchNorm statistics of random weights are not worth keeping.
        keeps_statistics = untrained.start == "pruned" and _has_batch_norm(student)
        self.trained = _KeepingStatistics(parts) if keeps_statistics else nn.ModuleList(parts)
        learning_rate = config.learning_rate
        if keeps_statistics:
            learning_rate *= config.batch_norm_rate_factor
        self.optimizer = build_optimizer(self.trained, learning_rate=learning_rate, weight_decay=config.weight_decay)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint by part."""
        modules = {name: module.state_dict() for name, module in self._parts.items()}
        start = torch.tensor(list(self._start.encode()), dtype=torch.uint8)
        return modules | {"optimizer": optimizer_tensors(self.optimizer), "start": {"text": start}}

    def resume(self, checkpoint: Checkpoint) -> list[EpochRecord]:
        """Load a checkpoint; return the history so far."""
        for name, module in self._parts.items():
            # The file has no entry for a part without tensors.
            module.load_state_dict(checkpoint.parts.get(name, {}))
        load_optimizer(self.optimizer, checkpoint.parts["optimizer"])
        return list(checkpoint.history)

    def result(self) -> Classifier:
        """Return the student in eval mode on the CPU."""
        return self._student.cpu().eval()


class _KeepingStatistics(nn.ModuleList):
    """Modules whose BatchNorm layers stay in eval mode; their scales and shifts are still trained."""

    def train(self, mode: bool = True) -> _KeepingStatistics:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        return self


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm) for module in network.modules())


def _check_inputs(teacher: Labeller, images: Rows, teacher_logits: Rows) -> None:
    if not len(images):
        raise DistillationError("The transfer set holds no images. Set synthesis.num_images to 1 or more.")
    if images.dtype != torch.uint8:
        raise DistillationError(
            f"The images are {images.dtype} and must be uint8, 0 to 255. Convert images in [0, 1] with: "
            "dfkd_core.common.pixels.quantise"
        )
    if tuple(images.shape[1:]) != teacher.card.image_shape:
        raise DistillationError(
            f"The images have shape {tuple(images.shape[1:])}, but the teacher takes {teacher.card.image_shape}. "
            "Make a transfer set for this teacher with: dfkd synthesize"
        )
    if teacher_logits.shape != (len(images), teacher.card.num_classes):
        raise DistillationError(
            f"The teacher's logits have shape {tuple(teacher_logits.shape)}; for {len(images)} images and "
            f"{teacher.card.num_classes} classes, it must be {(len(images), teacher.card.num_classes)}."
        )


def _report(on_progress: OnProgress, history: list[EpochRecord], epochs: int) -> None:
    metrics = {"loss": history[-1].loss} if history else {}
    on_progress(Progress(stage="distill", done=len(history), total=epochs, unit="epochs", metrics=metrics))


def _checkpoint_key(config: DistillationConfig, *, teacher: str, images: str, seed: int) -> str:
    settings = dataclasses.asdict(config)
    del settings["checkpoint_every_epochs"]
    return json_digest(
        {"format": CHECKPOINT_FORMAT, "config": settings, "teacher": teacher, "images": images, "seed": seed}
    )
