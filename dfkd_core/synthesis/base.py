"""The interface of every synthesis method.

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
"""Named tensors on the CPU, returned by a method's `prepare`."""

NO_STATE: State = {}
"""The state of a method that prepares nothing."""


@dataclass(frozen=True, slots=True)
class SynthesizedBatch:
    """Images and their soft targets."""

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

        An image depends only on the seed and its index, up to rounding. The same batch yields the same bytes.

        Args:
            image_indices: The images' positions in the whole transfer set.
            seed: The run's seed.
            on_progress: Called with the progress of these images, in any unit.

        Raises:
            SynthesisError: A loss is not finite.
        """


@runtime_checkable
class Labelling(Protocol):
    """A synthesizer that labels its images itself, instead of the frozen teacher."""

    def label(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits to store, float32 [n, k] on the CPU, for one batch of float images [n, c, h, w] in [0, 1].

        Distillation uses these logits only without augmentation; otherwise the unmodified teacher labels the augmented
        images.
        """


class MethodConfig(ABC):
    """The settings and the properties of one method. The settings class of each method extends this class."""

    needs: ClassVar[Access] = "labels"
    """The access to the teacher that the method needs."""
    uses_statistics: ClassVar[bool] = False
    """Whether the method reads the feature statistics; without it they may be missing."""
    prepares: ClassVar[bool] = False
    """Whether `prepare` must run once, before the first image, and returns a state."""
    steps_setting: ClassVar[str] = ""
    """Name of the field with the settings of the gradient steps on images; empty for a method without such steps."""

    @property
    def couples_images(self) -> bool:
        """Whether an image depends on the others in its batch, so that `batch_size` affects more than rounding."""
        return False

    @property
    def target_temperature(self) -> float:
        """Temperature of the soft targets and of the teacher outputs compared with them."""
        return 1.0

    @property
    def steps(self) -> DescentConfig | None:
        """Settings of the gradient steps on images; None for a method without such steps."""
        return getattr(self, self.steps_setting) if self.steps_setting else None

    def is_refined(self, image_indices: Sequence[int]) -> Tensor:
        """Return whether gradient steps change the images at these positions of the set, bool [n].

        The others stay as drawn.
        """
        return (
            torch.zeros(len(image_indices), dtype=torch.bool)
            if self.steps is None
            else self.steps.is_refined(image_indices)
        )

    def with_iterations(self, iterations: int) -> Self:
        """Return these settings with another number of gradient steps, or unchanged if the method takes none."""
        if self.steps is None:
            return self
        steps = {self.steps_setting: dataclasses.replace(self.steps, iterations=iterations)}
        return dataclasses.replace(self, **steps)  # type: ignore[type-var]  # every method's settings are a dataclass

    def prepare(
        self, teacher: Inspectable, statistics: FeatureStatistics, *, seed: int, on_progress: OnProgress = ignore
    ) -> State:
        """Compute the state that all images share. Called once if the method `prepares`; the state is stored.

        Args:
            teacher: The frozen teacher, with the access that the method needs.
            statistics: Its feature statistics.
            seed: The run's seed; all random draws derive from it.
            on_progress: Called with the progress, in any unit.
        """
        return NO_STATE

    @abstractmethod
    def build(self, teacher: Inspectable, statistics: FeatureStatistics, state: State = NO_STATE) -> Synthesizer:
        """Build the method.

        Args:
            teacher: The frozen teacher; only the access named by `needs` may be used.
            statistics: Its feature statistics; ignored by methods that do not use them.
            state: The result of `prepare`.

        Raises:
            TeacherError: The method cannot be used with this teacher.
        """
