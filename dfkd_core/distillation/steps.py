"""One step of distillation: its batch, its loss and the memory it takes.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.common.pixels import dequantise, load_batch, move_batch, quantise
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.disagreement import seek_disagreement
from dfkd_core.distillation.feature_matching import FeatureMatcher
from dfkd_core.distillation.mixing import mix
from dfkd_core.distillation.soft_labels import distillation_loss
from dfkd_core.distillation.students import drawn_student
from dfkd_core.distillation.views import StoredViews
from dfkd_core.errors import DistillationError
from dfkd_core.models.access import Differentiable, Inspectable, Labeller, has_access
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.layers import recorded
from dfkd_core.models.passes import PROBED_SIZES, WHOLE_SHARE, PassCost, gibibytes, joined, measure_cost
from dfkd_core.training.augmentation import augment
from dfkd_core.training.halves import first_rows, is_divisible, twin_of
from dfkd_core.training.loop import Schedule

__all__ = ["DistillationStep", "LabelledBatch", "check_memory", "step_cost"]

# Copies of the weights that an optimizer keeps: Adam's two moments.
_MOMENTS = 2


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Images as input to the student, and the teacher's outputs on them."""

    images: Tensor
    """float32 [n, c, h, w] in [0, 1]."""
    logits: Tensor
    """float32 [n, k]."""
    outputs: list[Tensor]
    """The teacher's outputs at the matched layers, each [n, ...]; empty if no layer is matched."""


class DistillationStep:
    """Makes labelled batches and computes the student's loss on them."""

    def __init__(
        self,
        teacher: Labeller,
        student: Classifier,
        images: Rows,
        teacher_logits: Rows,
        config: DistillationConfig,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare steps of a student on a set of images.

        Args:
            teacher: Labels the batches if `config.asks_teacher`; must allow the access that `config.needs` names.
            student: The network in training, on `device`.
            images: uint8 images [n, c, h, w].
            teacher_logits: Stored logits [n, k], the labels if the teacher is not queried.
            config: How images are augmented and mixed, and the weights of the loss.
            seed: Seed of the first weights of the learned map between widths.
            device: Where the student is trained.
        """
        self._teacher, self._student, self._images, self._teacher_logits = teacher, student, images, teacher_logits
        self._config, self._device = config, device
        self._views: StoredViews | None = None
        self.matcher: FeatureMatcher | None = None
        """Compares hidden outputs and holds the learned map between widths; None if `feature_weight` is 0."""
        if config.feature_weight:
            self.matcher = FeatureMatcher(cast(Inspectable, teacher), student, seed=seed).to(device)

    @property
    def notes(self) -> tuple[str, ...]:
        """Layers of both networks that are not compared since one of them does not call them, as a sentence."""
        unread = self.matcher.unread if self.matcher else ()
        return (
            (f"Hidden layers not compared, since one of the networks does not call them: {', '.join(unread)}",)
            if unread
            else ()
        )

    def merge_teacher(self) -> None:
        """Merge the teacher's BatchNorm into the preceding layers to save time, if its layers are accessible."""
        if has_access(self._teacher, "layers"):
            keep = self.matcher.teacher_paths if self.matcher else ()
            self._teacher = cast(Inspectable, self._teacher).merged(keep=keep)

    def store_views(self, schedule: Schedule, *, seed: int, memory: int, folder: Path | None) -> None:
        """Keep images and the teacher's outputs for later epochs if `config.views` is set and the teacher is asked.

        Args:
            schedule: The training that these steps belong to.
            seed: Its seed.
            memory: Available bytes.
            folder: Folder of temporary files, see `StoredViews`.
        """
        if self._config.views and self._config.asks_teacher:
            self._views = StoredViews(self._config.views, self._view, schedule, seed=seed, memory=memory, folder=folder)

    def begin(self, epoch: int) -> None:
        """Turn to the view of an epoch, counted from 1, if views are stored."""
        if self._views:
            self._views.begin(epoch)

    @torch.no_grad()
    def load(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the images [m, c, h, w] at positions int64 [m], augmented and mixed, or with what is stored of them.

        Stored are the teacher's logits [m, k] and, with views, its hidden outputs [m, ...] too.
        """
        if self._views:
            return tuple(move_batch(rows, self._device) for rows in self._views.load(positions, generator))
        batch = load_batch(self._images, positions, self._device)
        if not self._config.asks_teacher:
            logits = self._teacher_logits[move_batch(positions, self._teacher_logits.device)]
            return batch, move_batch(logits, self._device).float()
        return (self._changed(batch, generator),)

    def label(self, *loaded: Tensor) -> LabelledBatch:
        """Return the batch of the tensors from `load`, labelled by the teacher if there are no stored logits."""
        images, *stored = loaded
        return LabelledBatch(images, stored[0], stored[1:]) if stored else self._label(images)

    def _changed(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return mix(augment(batch, self._config.augmentation, generator), self._config.mixing, generator)

    def _view(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the rows of a view, the images rounded to the grey levels in which they are stored."""
        batch = self._changed(load_batch(self._images, positions, self._device), generator)
        labelled = self._label(dequantise(quantise(batch)))
        return labelled.images, labelled.logits, *(output.float() for output in labelled.outputs)

    def terms(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Return the named terms of the loss, scalars whose sum is the loss."""
        batch = self._with_disputed(batch)
        paths = self.matcher.student_paths if self.matcher else ()
        with autocast_on_gpu(batch.images.device), recorded(self._student, paths) as values:
            logits = self._student(batch.images)
        found = {"kl": distillation_loss(logits.float(), batch.logits, temperature=self._config.temperature)}
        if self.matcher:
            # A layer can be skipped in a pass, as with stochastic depth.
            outputs = [values.get(path) for path in paths]
            found["features"] = self._config.feature_weight * self.matcher(outputs, batch.outputs)
        return found

    def twin(self) -> tuple[nn.Module, DistillationStep] | None:
        """Return a copy of the student and the map with the same weights, and the same step on it.

        None if an image's outputs depend on the others of its batch, as with BatchNorm in training, or if images are
        changed against the student: both halves would then read the teacher at once.
        """
        example = load_batch(self._images, first_rows(len(self._images)), self._device)
        if self._config.disagreement.share or not is_divisible(self._student, example):
            return None
        twin = copy.copy(self)
        twin._student = twin_of(self._student)
        twin.matcher = twin_of(self.matcher) if self.matcher else None
        return nn.ModuleList([part for part in (twin._student, twin.matcher) if part]), twin

    def halves(self, batch: LabelledBatch) -> tuple[LabelledBatch, LabelledBatch, float]:
        """Return the two halves of a batch, the first one larger if they differ, and its share."""
        middle = (len(batch.images) + 1) // 2
        first, second = (
            LabelledBatch(batch.images[part], batch.logits[part], [output[part] for output in batch.outputs])
            for part in (slice(middle), slice(middle, None))
        )
        return first, second, middle / len(batch.images)

    @torch.no_grad()
    def _label(self, images: Tensor) -> LabelledBatch:
        """Return images [n, c, h, w] with the teacher's logits and hidden outputs, on the images' device."""
        inputs, device = images.to(self._teacher.device), images.device
        with autocast_on_gpu(device):
            if self.matcher is None:
                return LabelledBatch(images, self._teacher.label(inputs).to(device).float(), [])
            shown, paths = cast(Inspectable, self._teacher), self.matcher.teacher_paths
            passes = [shown.forward_with_outputs(paths, part) for part in shown.passes.split(inputs)]
        logits = joined([logits for logits, _ in passes]).to(device).float()
        outputs = [joined(list(of_layer)).to(device) for of_layer in zip(*(outputs for _, outputs in passes))]
        return LabelledBatch(images, logits, outputs)

    def _with_disputed(self, batch: LabelledBatch) -> LabelledBatch:
        """Return the batch with its first images changed so that the networks disagree, and labelled again."""
        config = self._config
        count = round(config.disagreement.share * len(batch.images))
        if not count:
            return batch
        teacher, chosen = cast(Differentiable, self._teacher), batch.images[:count]
        moved = seek_disagreement(teacher, self._student, chosen, config.disagreement, temperature=config.temperature)
        labelled = self._label(moved)
        pairs = zip(labelled.outputs, batch.outputs, strict=True)
        return LabelledBatch(
            torch.cat([moved, batch.images[count:]]),
            torch.cat([labelled.logits, batch.logits[count:]]),
            [torch.cat([new, old[count:]]) for new, old in pairs],
        )


def check_memory(cost: PassCost, config: DistillationConfig, *, network: str, num_images: int, memory: int) -> None:
    """Check that a batch fits into memory. It cannot be split: BatchNorm and the loss need the whole batch.

    Args:
        cost: Memory of a step, from `step_cost`.
        config: How to train.
        network: Name of the student's network.
        num_images: Number of images in the transfer set.
        memory: Available bytes.

    Raises:
        DistillationError: The batch does not fit; names the largest batch that does.
    """
    count = min(config.batch_size, num_images)
    if cost.of(count) <= WHOLE_SHARE * memory:
        return
    fitting = cost.most_images(WHOLE_SHARE * memory)
    remedy = f"Set distillation.batch_size: {fitting}" if fitting > 1 else "Not even 2 fit: choose a smaller student"
    raise DistillationError(
        f"A step of {network} on {count} images takes about {gibibytes(cost.of(count))}, but only "
        f"{gibibytes(WHOLE_SHARE * memory)} of the available {gibibytes(memory)} may be used. {remedy}, free memory or "
        "raise execution.memory_gib"
    )


def step_cost(
    teacher: Labeller,
    images: Rows,
    teacher_logits: Rows,
    config: DistillationConfig,
    *,
    seed: int,
    device: torch.device,
    prefetch: int,
) -> PassCost:
    """Measure the memory of a step, including the batches loaded ahead, on a temporary student."""
    # Images changed to make the networks disagree are processed in parts.
    config = dataclasses.replace(config, disagreement=dataclasses.replace(config.disagreement, share=0.0))
    student = drawn_student(teacher.card, config, seed=seed).to(device).train()
    step = DistillationStep(teacher, student, images, teacher_logits, config, seed=seed, device=device)
    # The first image several times, since the set may have fewer images.
    first = {n: torch.zeros(n, dtype=torch.int64) for n in PROBED_SIZES}
    batches = {n: step.label(*step.load(first[n], derive_generator(seed, "memory"))) for n in PROBED_SIZES}

    def run(num_images: int) -> None:
        torch.autograd.backward(torch.stack(tuple(step.terms(batches[num_images]).values())).sum())

    # Dropout draws from the global generators.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        measured = measure_cost(run, device)
    batch = next(iter(batches.values()))
    waiting = sum(tensor.nbytes for tensor in (batch.images, batch.logits, *batch.outputs)) // len(batch.images)
    optimizer = _MOMENTS * sum(parameter.nbytes for parameter in student.parameters())
    return PassCost(measured.fixed + optimizer, measured.per_image + (prefetch + 1) * waiting)
