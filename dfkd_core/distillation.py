"""Training a student on what the teacher says of a transfer set, without a label.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from dfkd_core.augmentation import AugmentationConfig, augment
from dfkd_core.devices import autocast_on_gpu
from dfkd_core.digests import canonical_json, json_digest, tensors_digest, write_atomically
from dfkd_core.errors import DistillationError, TransferSetError
from dfkd_core.models import Classifier, build_classifier
from dfkd_core.networks import default_layer, network_names
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import Fraction, NonNegative, Positive, PositiveInt, config_section
from dfkd_core.teacher import Teacher
from dfkd_core.training import EpochRecord, LossTerms, build_optimizer, load_batch, run_epochs
from dfkd_core.transfer_set import TransferSet

__all__ = ["DistillationConfig", "DistillationResult", "distill", "distill_images", "distillation_loss"]

CHECKPOINT_FORMAT = 1
# All of a checkpoint that is no tensor stands as JSON under one key: safetensors writes several in a random order.
HEADER = "checkpoint"


@config_section
class DistillationConfig:
    """How a student is trained on a transfer set."""

    student: str = "lenet5_half"
    """Name of the student's network."""
    epochs: PositiveInt = 40
    """Passes over the transfer set."""
    batch_size: PositiveInt = 256
    """Images per step; 128 to 512 are the fastest on a CPU."""
    temperature: Positive = 4.0
    """Temperature T that softens both outputs; the higher, the nearer to matching centred logits."""
    mse_weight: NonNegative = 0.0
    """Weight of the squared difference of the logits; 0 leaves the KL divergence alone."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    learning_rate: Positive = 8e-3
    """Highest learning rate, reached after the warm-up; for sgd about 0.05."""
    weight_decay: NonNegative = 0.0
    """Weight decay of the weight matrices and kernels."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Nesterov momentum, for sgd only."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps in which the learning rate rises; it then falls to zero along a cosine."""
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(shift_px=2))
    """How images are moved; if at all, the teacher labels the moved images, which costs its forward pass."""
    checkpoint_every_epochs: PositiveInt = 5
    """Epochs between two checkpoints; does not change the result."""

    def faults(self) -> Iterator[str]:
        """Yield what is wrong beyond single ranges."""
        if self.student not in network_names():
            yield f"student must be one of {', '.join(network_names())}, got {self.student!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """A trained student and how it got there."""

    student: Classifier
    """The student of the last epoch, in eval mode on the CPU."""
    history: tuple[EpochRecord, ...]
    """One record per epoch, those before a resumption included."""


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, mse_weight: float = 0.0
) -> Tensor:
    """Return T^2 KL(teacher || student) at temperature T, plus `mse_weight` times the logits' mean squared difference.

    The KL term is a mean over images (Hinton et al., 2015, arXiv 1503.02531, section 2).

    Args:
        student_logits: Logits [n, k].
        teacher_logits: Logits [n, k].
        temperature: T.
        mse_weight: Weight of the mean over images and classes of (student - teacher)^2.
    """
    terms = _loss_terms(student_logits, teacher_logits, temperature=temperature, mse_weight=mse_weight)
    return torch.stack(tuple(terms.values())).sum()


def distill(
    teacher: Teacher,
    transfer_set: TransferSet,
    config: DistillationConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_progress: OnProgress = ignore,
) -> DistillationResult:
    """Train a student from random weights on a transfer set; the last epoch counts.

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
        on_progress=on_progress,
    )


def distill_images(
    teacher: Teacher,
    images: Tensor,
    teacher_logits: Tensor,
    config: DistillationConfig,
    *,
    seed: int,
    key: str = "",
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_progress: OnProgress = ignore,
) -> DistillationResult:
    """Train a student from random weights on images and the teacher's logits; the last epoch counts.

    A run that is resumed from `checkpoint` ends with the bits of an undisturbed run on a CPU with as many threads.

    Args:
        teacher: Labels the moved images where there is augmentation; the student's card follows the teacher's.
        images: uint8 images [n, c, h, w].
        teacher_logits: The teacher's logits [n, k] on them, the labels where there is no augmentation.
        config: How to train.
        seed: Seed of the first weights, the shuffles and the augmentation.
        key: Tells image sets apart for `checkpoint`, for example a digest.
        device: Where to compute.
        checkpoint: File to resume from and to save to. One that is truncated or of another configuration, image set,
            teacher or seed is ignored and replaced.
        on_progress: Told after each epoch.

    Raises:
        ConfigError: The student's network rejects the image size.
        DistillationError: There are no images, the logits do not fit them, the loss is not finite, or the checkpoint
            cannot be written.
    """
    _check_inputs(teacher, images, teacher_logits)
    card = dataclasses.replace(teacher.card, network=config.student, layer=default_layer(config.student))
    student = build_classifier(card, seed=seed).to(device)
    optimizer = build_optimizer(
        student,
        name=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )
    key = _checkpoint_key(config, teacher=teacher.digest, images=key, seed=seed)
    history = _resume(checkpoint, key, student, optimizer)
    _report(on_progress, history, config.epochs)
    for record in run_epochs(
        student,
        optimizer,
        _batch_terms(student, teacher, images.to(device), teacher_logits.to(device), config),
        num_images=len(images),
        batch_size=config.batch_size,
        epochs=config.epochs,
        warmup_fraction=config.warmup_fraction,
        seed=seed,
        error=DistillationError,
        first_epoch=len(history) + 1,
    ):
        history.append(record)
        if checkpoint and (record.epoch % config.checkpoint_every_epochs == 0 or record.epoch == config.epochs):
            _save_checkpoint(checkpoint, key, student, optimizer, history)
        _report(on_progress, history, config.epochs)
    return DistillationResult(student=student.cpu().eval(), history=tuple(history))


def _loss_terms(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, mse_weight: float
) -> dict[str, Tensor]:
    student_log = functional.log_softmax(student_logits / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher_logits / temperature, dim=1)
    divergence = functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")
    terms = {"kl": temperature**2 * divergence}
    if mse_weight:
        terms["mse"] = mse_weight * functional.mse_loss(student_logits, teacher_logits)
    return terms


def _batch_terms(
    student: Classifier, teacher: Teacher, images: Tensor, teacher_logits: Tensor, config: DistillationConfig
) -> LossTerms:
    def terms(positions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        batch = load_batch(images, positions)
        with autocast_on_gpu(batch.device):
            if config.augmentation.is_active:
                batch = augment(batch, config.augmentation, generator)
                with torch.no_grad():
                    targets = teacher(batch.to(teacher.device)).to(batch.device)
            else:
                targets = teacher_logits[positions.to(batch.device)]
            outputs = student(batch)
        return _loss_terms(
            outputs.float(), targets.float(), temperature=config.temperature, mse_weight=config.mse_weight
        )

    return terms


def _check_inputs(teacher: Teacher, images: Tensor, teacher_logits: Tensor) -> None:
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


def _report(on_progress: OnProgress, history: list[EpochRecord], epochs: int) -> None:
    metrics = {"loss": history[-1].loss} if history else {}
    on_progress(Progress(stage="distill", done=len(history), total=epochs, unit="epochs", metrics=metrics))


def _checkpoint_key(config: DistillationConfig, *, teacher: str, images: str, seed: int) -> str:
    settings = dataclasses.asdict(config)
    del settings["checkpoint_every_epochs"]
    return json_digest(
        {"format": CHECKPOINT_FORMAT, "config": settings, "teacher": teacher, "images": images, "seed": seed}
    )


def _save_checkpoint(
    path: Path, key: str, student: Classifier, optimizer: torch.optim.Optimizer, history: list[EpochRecord]
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in student.network.state_dict().items()}
    for position, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{position}.{name}": value for name, value in state.items() if value is not None}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"key": key, "digest": tensors_digest(tensors), "history": history}
    try:
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, {HEADER: canonical_json(header)})
    except (OSError, SafetensorError) as error:
        raise DistillationError(
            f"Cannot write the checkpoint {path}: {error}. The folder must be writable and the disk must have room; "
            "then run the same command again."
        ) from error


def _resume(path: Path | None, key: str, student: Classifier, optimizer: torch.optim.Optimizer) -> list[EpochRecord]:
    """Load weights and optimizer state if `path` holds a whole checkpoint of `key`; return the epochs done."""
    found = _read_checkpoint(path, key) if path else None
    if found is None:
        return []
    tensors, history = found
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    student.network.load_state_dict(parts["network"])
    _load_optimizer(optimizer, parts["optimizer"])
    return history


def _read_checkpoint(path: Path, key: str) -> tuple[dict[str, Tensor], list[EpochRecord]] | None:
    """Return the tensors and the history, or None if there is no whole checkpoint of `key`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if tensors_digest(tensors) != header["digest"]:
            return None
        return tensors, [EpochRecord(**fields) for fields in header["history"]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _load_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        position, _, field_name = name.partition(".")
        parameter = parameters[int(position)]
        # The fused kernels walk parameter and state side by side, so both need the same memory layout.
        fits = tensor.shape == parameter.shape
        value = torch.empty_like(parameter).copy_(tensor) if fits else tensor
        state.setdefault(int(position), {})[field_name] = value.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
