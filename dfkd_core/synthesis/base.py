"""What every synthesis method offers and declares.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from dfkd_core.models.access import Access, Inspectable
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.descent import DescentConfig

__all__ = ["NO_STATE", "Labelling", "MethodConfig", "State", "SynthesizedBatch", "Synthesizer"]

State = Mapping[str, Tensor]
"""Named tensors that a method's `prepare` made, on the CPU."""

NO_STATE: State = {}
"""The state of a method that prepares nothing."""


@dataclass(frozen=True, slots=True)
class SynthesizedBatch:
    """Images and the distributions that they were made for."""

    images: torch.Tensor
    """float32 [n, c, h, w] in [0, 1] on the CPU."""
    soft_targets: torch.Tensor
    """float32 [n, k] on the CPU; rows sum to 1."""


class Synthesizer(Protocol):
    """Makes images that a teacher can label."""

    def synthesize(
        self, image_indices: Sequence[int], *, seed: int, on_progress: OnProgress = ignore
    ) -> SynthesizedBatch:
        """Make the images at these positions of the transfer set.

        An image depends on (seed, its index) alone, up to rounding; the same batch gives the same bytes.

        Args:
            image_indices: The images' positions in the whole transfer set.
            seed: The run's seed.
            on_progress: Called with the progress of these images, in any unit.

        Raises:
            SynthesisError: A loss is not finite.
        """


@runtime_checkable
class Labelling(Protocol):
    """A synthesizer whose images are labelled in another way than by the frozen teacher."""

    def label(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits to store, float32 [n, k] on the CPU, for one batch of float images [n, c, h, w] in [0, 1].

        A distillation with augmentation labels the moved images with the teacher as it is; without it, these count.
        """


class MethodConfig(ABC):
    """The settings of one method, and what the method is; a method's own settings extend this class."""

    needs: ClassVar[Access] = "labels"
    """What the method needs of the teacher."""
    couples_images: ClassVar[bool] = False
    """Whether an image depends on the others of its batch, so that `batch_size` decides more than rounding."""
    prepares: ClassVar[bool] = False
    """Whether `prepare` makes a state, once, before any image is made."""
    steps_setting: ClassVar[str] = ""
    """Name of the field that holds the gradient steps on images; empty for a method that takes none."""

    @property
    def target_temperature(self) -> float:
        """Temperature of the soft targets and of the teacher's output that is compared with them."""
        return 1.0

    @property
    def steps(self) -> DescentConfig | None:
        """The gradient steps on images; None for a method that takes none."""
        return getattr(self, self.steps_setting) if self.steps_setting else None

    def with_iterations(self, iterations: int) -> Self:
        """Return these settings with another number of gradient steps, if the method takes any."""
        if self.steps is None:
            return self
        steps = {self.steps_setting: dataclasses.replace(self.steps, iterations=iterations)}
        return dataclasses.replace(self, **steps)  # type: ignore[type-var]  # every method's settings are a dataclass

    def prepare(
        self, teacher: Inspectable, statistics: FeatureStatistics, *, seed: int, on_progress: OnProgress = ignore
    ) -> State:
        """Train or search what all images need, if the method `prepares`; runs once, and its state is stored.

        Args:
            teacher: The frozen teacher, with the access that the method needs.
            statistics: Its feature statistics.
            seed: The run's seed, which addresses every draw.
            on_progress: Called with the progress, in any unit.
        """
        return NO_STATE

    @abstractmethod
    def build(self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE) -> Synthesizer:
        """Build the method.

        Args:
            teacher: The frozen teacher; only what `needs` names may be used of it.
            statistics: Its feature statistics; a method that uses none ignores them.
            state: What `prepare` made.

        Raises:
            TeacherError: The method cannot be used with this teacher.
        """
