"""Training a student on what the teacher says of a transfer set, without a label.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from dfkd_core.architectures import architecture_fault
from dfkd_core.augmentation import AugmentationConfig, augment
from dfkd_core.averaging import moving_average
from dfkd_core.checkpoints import (
    CHECKPOINT_FORMAT,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    save_checkpoint,
)
from dfkd_core.devices import autocast_on_gpu
from dfkd_core.digests import json_digest
from dfkd_core.disagreement import DisagreementConfig, seek_disagreement
from dfkd_core.errors import ConfigError, DistillationError, TeacherError, TransferSetError
from dfkd_core.feature_matching import FeatureMatcher, forward_with_outputs
from dfkd_core.layers import BatchNorm
from dfkd_core.micro_batches import PROBED_SIZES, WHOLE_SHARE, PassCost, gibibytes, joined, measure_cost
from dfkd_core.mixing import Mixing, mix
from dfkd_core.models import Classifier, ModelCard, build_classifier
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.pruning import can_prune, prune_into
from dfkd_core.rows import Rows
from dfkd_core.sections import Fraction, NonNegative, Positive, PositiveInt, config_section
from dfkd_core.seeding import derive_generator
from dfkd_core.soft_labels import loss_terms, temperature_of_confidence
from dfkd_core.teacher import Teacher
from dfkd_core.training import EpochRecord, build_optimizer, load_batch, move_batch, run_epochs
from dfkd_core.transfer_set import TransferSet

__all__ = ["DistillationConfig", "DistillationResult", "check_student", "distill", "distill_images", "student_card"]

Start = Literal["random", "pruned"]

# Copies of the weights that an optimizer keeps: Adam's two moments.
_MOMENTS = 2


@config_section
class DistillationConfig:
    """How a student is trained on a transfer set."""

    student: str = "lenet5_half"
    """The student's network: built in (also as a multiple of widths, `lenet5@0.5`), `torchvision:NAME`, `timm:NAME` or
    `package.module:factory`."""
    student_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function that builds the student's network."""
    start: Literal["auto", "random", "pruned"] = "auto"
    """First weights: drawn (`random`), or a thinner copy of the teacher (`pruned`), which is another protocol than most
    papers'; `auto` takes the copy where the student is one."""
    epochs: PositiveInt = 40
    """Passes over the transfer set."""
    batch_size: PositiveInt = 256
    """Images per step; 128 to 512 are the fastest on a CPU."""
    temperature: Positive = 4.0
    """Temperature T that softens both outputs; the higher, the nearer to matching centred logits."""
    confidence: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Above 0: choose T so that the teacher's mean largest probability on the stored transfer set is this."""
    mse_weight: NonNegative = 0.0
    """Weight of the squared difference of the logits; 0 leaves the KL divergence alone."""
    feature_weight: NonNegative = 2.0
    """Weight of the squared difference of inner outputs over the teacher's variance; about 1. Above 0 the teacher runs
    on every batch, since its inner outputs are not stored."""
    feature_layers: Literal["shared", "modelled"] = "shared"
    """Where `feature_weight` compares: at all layers that both networks have in the same shape and the modelled one, or
    at that one alone; where its widths differ, a linear map is learned and dropped at the end."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    learning_rate: Positive = 8e-3
    """Highest learning rate, reached after the warm-up; for sgd about 0.05."""
    batch_norm_rate_factor: Positive = 0.5
    """Factor on `learning_rate` for a thinner copy with BatchNorm. Its BatchNorm keeps the teacher's statistics of real
    images, and so holds large steps less in check than one that normalises by each batch, as from a random start."""
    weight_decay: NonNegative = 0.0
    """Weight decay of the weight matrices and kernels."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Nesterov momentum, for sgd only."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps in which the learning rate rises; it then falls to zero along a cosine."""
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(shift=0.0625))
    """How images are moved; if at all, the teacher labels the moved images, which costs its forward pass."""
    mixing: Mixing = "none"
    """Whether each image is blended with another one or gets a box of it pasted in; the teacher labels the outcome."""
    mixing_alpha: Positive = 1.0
    """Parameter of the Beta distribution of the shares: near 0 leaves images nearly whole, 1 makes all shares alike."""
    disagreement: DisagreementConfig = field(default_factory=DisagreementConfig)
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Above 0: the result is a moving average of the weights in which a step's weight falls by this factor per step."""
    checkpoint_every_epochs: PositiveInt = 5
    """Epochs between two checkpoints; does not change the result."""

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher runs on every batch; otherwise its stored logits are the labels."""
        return self.augmentation.is_active or self.mixing != "none" or self.feature_weight > 0

    def faults(self) -> Iterator[str]:
        """Yield what is wrong beyond single ranges."""
        if fault := architecture_fault(self.student):
            yield f"student: {fault}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """A trained student and how it got there."""

    student: Classifier
    """The student of the last epoch, or the average of the weights, in eval mode on the CPU."""
    history: tuple[EpochRecord, ...]
    """One record per epoch, those before a resumption included."""
    temperature: float
    """Temperature of the loss: the configured one or the one chosen by `confidence`."""
    start: Start
    """What the first weights were."""


def distill(
    teacher: Teacher,
    transfer_set: TransferSet,
    config: DistillationConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    prefetch: int = 0,
    on_progress: OnProgress = ignore,
) -> DistillationResult:
    """Train a student on a transfer set; the last epoch counts.

    Arguments, result and errors as in `distill_images`.

    Raises:
        TransferSetError: The transfer set was made with another teacher.
    """
    made_with = transfer_set.manifest.teacher_digest
    if made_with != teacher.digest:
        raise TransferSetError(
            f"The transfer set in {transfer_set.folder} belongs to teacher {made_with}, and this one is "
            f"{teacher.digest}. Make its own with: dfkd synthesize"
        )
    return distill_images(
        teacher,
        transfer_set.images,
        transfer_set.teacher_logits,
        config,
        key=json_digest(transfer_set.manifest),
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        prefetch=prefetch,
        on_progress=on_progress,
    )


def distill_images(
    teacher: Teacher,
    images: Rows,
    teacher_logits: Rows,
    config: DistillationConfig,
    *,
    seed: int,
    key: str = "",
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    prefetch: int = 0,
    on_progress: OnProgress = ignore,
) -> DistillationResult:
    """Train a student on images and the teacher's logits; the last epoch counts.

    A run that is resumed from `checkpoint` ends with the bits of an undisturbed run on a CPU with as many threads.
    Batches are read and moved to the device one by one, so that the set may lie in files larger than the memory.

    Args:
        teacher: Labels the batches where `config.asks_teacher`; the student's card follows the teacher's.
        images: uint8 images [n, c, h, w].
        teacher_logits: The teacher's logits [n, k] on them, the labels where the teacher is not asked.
        config: How to train.
        seed: Seed of the first weights, the shuffles, the augmentation and the mixing.
        key: Tells image sets apart for `checkpoint`, for example a digest.
        device: Where to compute.
        checkpoint: File to resume from and to save to. One that is truncated or of another configuration, image set,
            teacher or seed is ignored and replaced.
        prefetch: Batches that a second thread moves, mixes and labels ahead, about 2; does not change the result.
        on_progress: Told after each epoch.

    Raises:
        ConfigError: The student's network rejects the image size.
        DistillationError: There are no images, the logits do not fit them, a batch does not fit into memory, no
            temperature gives the confidence, the loss is not finite, or the checkpoint cannot be written.
    """
    _check_inputs(teacher, images, teacher_logits)
    _check_memory(teacher, images, teacher_logits, config, seed=seed, device=torch.device(device), prefetch=prefetch)
    wanted = config.confidence
    temperature = temperature_of_confidence(teacher_logits, wanted) if wanted else config.temperature
    key = _checkpoint_key(config, teacher=teacher.digest, images=key, seed=seed)
    found = read_checkpoint(checkpoint, key) if checkpoint else None
    student, start = _build_student(teacher, images, config, seed=seed, is_resumed=found is not None)
    student.to(device)
    matcher = None
    if config.feature_weight:
        matcher = FeatureMatcher(teacher, student, layers=config.feature_layers, seed=seed).to(device)
    trainee = _Trainee(student, matcher, config, start)
    teacher = teacher.merged(keep=matcher.teacher_paths if matcher else ())
    history = trainee.resume(found) if found else []
    _report(on_progress, history, config.epochs)
    for record in run_epochs(
        trainee.trained,
        trainee.optimizer,
        _loader(teacher, images, teacher_logits, matcher, config, torch.device(device)),
        _loss(teacher, student, matcher, temperature, config),
        num_images=len(images),
        batch_size=config.batch_size,
        epochs=config.epochs,
        warmup_fraction=config.warmup_fraction,
        seed=seed,
        error=DistillationError,
        first_epoch=len(history) + 1,
        prefetch=prefetch,
    ):
        history.append(record)
        if checkpoint and (record.epoch % config.checkpoint_every_epochs == 0 or record.epoch == config.epochs):
            save_checkpoint(checkpoint, key, Checkpoint(parts=trainee.parts(), history=history))
        _report(on_progress, history, config.epochs)
    return DistillationResult(student=trainee.result(), history=tuple(history), temperature=temperature, start=start)


def student_card(teacher: ModelCard, config: DistillationConfig) -> ModelCard:
    """Return the card of a student of this teacher: the same input and classes, its own network; no layer yet."""
    return dataclasses.replace(
        teacher,
        network=config.student,
        arguments=config.student_arguments,
        layer="",
        outputs="logits",
        output_key="",
        program_sha256="",
    )


@torch.no_grad()
def check_student(teacher: ModelCard, config: DistillationConfig) -> None:
    """Check, before anything expensive, that the student can be built for this teacher's images and classes.

    Raises:
        ConfigError: It cannot, or its answer is not one of logits for each class.
    """
    student = build_classifier(student_card(teacher, config), seed=0).eval()
    try:
        shape = tuple(student(torch.full((2, *teacher.image_shape), 0.5)).shape)
    except (TeacherError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The student {config.student} cannot take the teacher's images {teacher.image_shape}: {error}. "
            "Choose another distillation.student"
        ) from error
    if shape != (2, teacher.num_classes):
        raise ConfigError(
            f"The student {config.student} answers 2 images with shape {shape}; for the teacher's "
            f"{teacher.num_classes} classes it must be {(2, teacher.num_classes)}. Set distillation.student_arguments"
        )


def _build_student(
    teacher: Teacher, images: Rows, config: DistillationConfig, *, seed: int, is_resumed: bool
) -> tuple[Classifier, Start]:
    """Return the student with its first weights, and what these are."""
    student = build_classifier(student_card(teacher.card, config), seed=seed)
    start: Start = "random" if config.start == "random" else "pruned"
    if config.start == "auto" and not can_prune(teacher, student.network):
        start = "random"
    # The weights of a resumed run come from its checkpoint.
    if start == "pruned" and not is_resumed:
        prune_into(teacher, student.network, images)
    return student, start


class _Trainee:
    """The student with all that is trained beside it, the optimizer of both and the student's average."""

    def __init__(
        self, student: Classifier, matcher: FeatureMatcher | None, config: DistillationConfig, start: Start
    ) -> None:
        self._student = student
        self._average = moving_average(student, config.ema_decay) if config.ema_decay else None
        named = {"network": student.network, "matcher": matcher, "average": self._average}
        self._parts = {name: module for name, module in named.items() if module is not None}
        parts = [student] if matcher is None else [student, matcher]
        # Drawn weights have no statistics that are worth keeping.
        keeps_statistics = start == "pruned" and _has_batch_norm(student)
        self.trained = _KeepingStatistics(parts) if keeps_statistics else nn.ModuleList(parts)
        learning_rate = config.learning_rate
        if keeps_statistics:
            learning_rate *= config.batch_norm_rate_factor
        self.optimizer = build_optimizer(
            self.trained,
            name=config.optimizer,
            learning_rate=learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        if self._average is not None:
            average = self._average
            self.optimizer.register_step_post_hook(lambda *arguments: average.update_parameters(student))

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the parts of a checkpoint."""
        modules = {name: module.state_dict() for name, module in self._parts.items()}
        return modules | {"optimizer": optimizer_tensors(self.optimizer)}

    def resume(self, checkpoint: Checkpoint) -> list[EpochRecord]:
        """Load a checkpoint; return the history so far."""
        for name, module in self._parts.items():
            # A part without tensors leaves no trace in the file.
            module.load_state_dict(checkpoint.parts.get(name, {}))
        load_optimizer(self.optimizer, checkpoint.parts.get("optimizer", {}))
        return list(checkpoint.history)

    def result(self) -> Classifier:
        """Return the student that counts, in eval mode on the CPU."""
        student: nn.Module = self._student if self._average is None else self._average.module
        assert isinstance(student, Classifier)
        return student.cpu().eval()


class _KeepingStatistics(nn.ModuleList):
    """Modules whose BatchNorm layers stay in eval mode; their scales and shifts are trained all the same."""

    def train(self, mode: bool = True) -> _KeepingStatistics:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        return self


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm) for module in network.modules())


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images as the student sees them and what the teacher says of them."""

    images: Tensor
    logits: Tensor
    outputs: list[Tensor]


def _loader(
    teacher: Teacher,
    images: Rows,
    teacher_logits: Rows,
    matcher: FeatureMatcher | None,
    config: DistillationConfig,
    device: torch.device,
) -> Callable[[Tensor, torch.Generator], _Batch]:
    """Return what makes a batch; it looks at the teacher and never at the student."""
    paths = matcher.teacher_paths if matcher else ()

    @torch.no_grad()
    def load(positions: Tensor, generator: torch.Generator) -> _Batch:
        batch = load_batch(images, positions, device)
        if not config.asks_teacher:
            logits = teacher_logits[positions.to(teacher_logits.device)]
            return _Batch(batch, move_batch(logits, device).float(), [])
        batch = augment(batch, config.augmentation, generator)
        batch = mix(batch, config.mixing, config.mixing_alpha, generator)
        return _labelled(teacher, paths, batch)

    return load


@torch.no_grad()
def _labelled(teacher: Teacher, paths: Sequence[str], images: Tensor) -> _Batch:
    """Return images [n, c, h, w] with the teacher's logits and inner outputs, on the images' device."""
    with autocast_on_gpu(images.device):
        parts = teacher.passes.split(images.to(teacher.device))
        passes = [forward_with_outputs(teacher.classifier, paths, part) for part in parts]
    logits = joined([logits for logits, _ in passes]).to(images.device).float()
    outputs = [joined(list(of_layer)).to(images.device) for of_layer in zip(*(outputs for _, outputs in passes))]
    return _Batch(images, logits, outputs)


def _loss(
    teacher: Teacher,
    student: Classifier,
    matcher: FeatureMatcher | None,
    temperature: float,
    config: DistillationConfig,
) -> Callable[[_Batch], dict[str, Tensor]]:
    paths = matcher.student_paths if matcher else ()
    teacher_paths = matcher.teacher_paths if matcher else ()

    def disputed(batch: _Batch) -> _Batch:
        """Return the batch with its first images moved to where the networks disagree, and labelled there."""
        count = round(config.disagreement.share * len(batch.images))
        if not count:
            return batch
        moved = seek_disagreement(teacher, student, batch.images[:count], config.disagreement, temperature=temperature)
        labelled = _labelled(teacher, teacher_paths, moved)
        pairs = zip(labelled.outputs, batch.outputs, strict=True)
        return _Batch(
            torch.cat([moved, batch.images[count:]]),
            torch.cat([labelled.logits, batch.logits[count:]]),
            [torch.cat([new, old[count:]]) for new, old in pairs],
        )

    def terms(batch: _Batch) -> dict[str, Tensor]:
        batch = disputed(batch)
        with autocast_on_gpu(batch.images.device):
            logits, outputs = forward_with_outputs(student, paths, batch.images)
        found = loss_terms(logits.float(), batch.logits, temperature=temperature, mse_weight=config.mse_weight)
        if matcher:
            found["features"] = config.feature_weight * matcher(outputs, batch.outputs)
        return found

    return terms


def _check_inputs(teacher: Teacher, images: Rows, teacher_logits: Rows) -> None:
    if not len(images):
        raise DistillationError("The transfer set holds no images. Set synthesis.num_images to 1 or more.")
    if tuple(images.shape[1:]) != teacher.card.image_shape:
        raise DistillationError(
            f"The images have shape {tuple(images.shape[1:])} and the teacher takes {teacher.card.image_shape}. "
            "Make a transfer set for this teacher with: dfkd synthesize"
        )
    if teacher_logits.shape != (len(images), teacher.card.num_classes):
        raise DistillationError(
            f"The teacher's logits have shape {tuple(teacher_logits.shape)}; for {len(images)} images and "
            f"{teacher.card.num_classes} classes it must be {(len(images), teacher.card.num_classes)}."
        )


def _check_memory(
    teacher: Teacher,
    images: Rows,
    teacher_logits: Rows,
    config: DistillationConfig,
    *,
    seed: int,
    device: torch.device,
    prefetch: int,
) -> None:
    """Check that a batch fits, which cannot be split: BatchNorm and the loss are about all of it.

    Raises:
        DistillationError: It does not; names the largest batch that does.
    """
    cost = _step_cost(teacher, images, teacher_logits, config, seed=seed, device=device, prefetch=prefetch)
    count, memory = min(config.batch_size, len(images)), teacher.passes.memory
    if cost.of(count) <= WHOLE_SHARE * memory:
        return
    fitting = cost.most_images(WHOLE_SHARE * memory)
    remedy = f"Set distillation.batch_size: {fitting}" if fitting > 1 else "Not even 2 fit: choose a smaller student"
    raise DistillationError(
        f"A step of {config.student} on {count} images takes about {gibibytes(cost.of(count))}, and "
        f"{gibibytes(WHOLE_SHARE * memory)} of the {gibibytes(memory)} at hand may be used. {remedy}, free memory or "
        "raise execution.memory_gib"
    )


def _step_cost(
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
    matcher = None
    if config.feature_weight:
        matcher = FeatureMatcher(teacher, student, layers=config.feature_layers, seed=seed).to(device)
    load = _loader(teacher, images, teacher_logits, matcher, config, device)
    # The same image several times: there may be fewer.
    batches = {n: load(torch.zeros(n, dtype=torch.int64), derive_generator(seed, "memory")) for n in PROBED_SIZES}
    terms = _loss(teacher, student, matcher, 1.0, config)

    def step(num_images: int) -> None:
        torch.autograd.backward(torch.stack(tuple(terms(batches[num_images]).values())).sum())

    # Dropout draws from the global generators.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        measured = measure_cost(step, device)
    batch = next(iter(batches.values()))
    waiting = sum(tensor.nbytes for tensor in (batch.images, batch.logits, *batch.outputs)) // len(batch.images)
    optimizer = _MOMENTS * sum(parameter.nbytes for parameter in student.parameters())
    return PassCost(measured.fixed + optimizer, measured.per_image + (prefetch + 1) * waiting)


def _report(on_progress: OnProgress, history: list[EpochRecord], epochs: int) -> None:
    metrics = {"loss": history[-1].loss} if history else {}
    on_progress(Progress(stage="distill", done=len(history), total=epochs, unit="epochs", metrics=metrics))


def _checkpoint_key(config: DistillationConfig, *, teacher: str, images: str, seed: int) -> str:
    settings = dataclasses.asdict(config)
    del settings["checkpoint_every_epochs"]
    return json_digest(
        {"format": CHECKPOINT_FORMAT, "config": settings, "teacher": teacher, "images": images, "seed": seed}
    )
