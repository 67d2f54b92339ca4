"""How a student is trained on a transfer set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from dfkd_core.distillation.disagreement import DisagreementConfig
from dfkd_core.distillation.mixing import Mixing
from dfkd_core.models.access import Access
from dfkd_core.models.architectures import architecture_fault, argument_fault
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, config_section
from dfkd_core.training.augmentation import AugmentationConfig

__all__ = ["AUTO", "DistillationConfig"]

AUTO = "auto"
"""Name of the student that fits the teacher at hand."""


@config_section
class DistillationConfig:
    """How a student is trained on a transfer set.

    Example:
        >>> from dfkd_core import DistillationConfig
        >>> config = DistillationConfig(student="lenet5@0.5", start="random", feature_weight=0.0)
        >>> config.needs, config.asks_teacher
        ('labels', True)
    """

    student: str = AUTO
    """The student's network: built in, `torchvision:NAME`, `timm:NAME` or `package.module:factory`, each also with a
    width multiple, as `lenet5@0.5`. `auto` is the teacher's network with half the widths, or resnet18_quarter if that
    cannot be made."""
    student_sha256: str = ""
    """Digest of the file that defines the student; `dfkd run` writes it, so that a change of the file is noticed."""
    student_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function that builds the student's network."""
    start: Literal["auto", "random", "pruned"] = "auto"
    """First weights: drawn (`random`), or a thinner or shorter copy of the teacher (`pruned`), which most papers do not
    use; `auto` takes the copy if the student's network allows it."""
    epochs: PositiveInt = 20
    """Passes over the transfer set."""
    batch_size: PositiveInt = 256
    """Images per step; 128 to 512 are the fastest on a CPU."""
    temperature: Positive = 4.0
    """Temperature T that softens both outputs; higher values approach the matching of centred logits."""
    feature_weight: NonNegative = 8.0
    """Weight of the squared difference of hidden outputs over the teacher's variance, at the modelled layer and all
    others that both networks have in the same shape. If the modelled layer's widths differ, a linear map is learned and
    dropped at the end. Above 0, the teacher runs on every batch, unless `views` are stored."""
    learning_rate: Positive = 8e-3
    """Peak learning rate of AdamW, reached after the warm-up."""
    batch_norm_rate_factor: Positive = 0.5
    """Factor on `learning_rate` for a thinner copy with BatchNorm. Its BatchNorm keeps the teacher's statistics of real
    images, which limits the effect of large steps less than normalisation by each batch does after a random start."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of weight matrices and kernels."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps in which the learning rate rises; it then falls to zero on a cosine."""
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(shift=0.0625))
    """Augmentation of the images. If there is any, the teacher labels the augmented images in an extra forward pass."""
    mixing: Mixing = "none"
    """Blend each image with another one or paste a box of the other into it; the teacher labels the result."""
    disagreement: DisagreementConfig = field(default_factory=DisagreementConfig)
    views: NonNegativeInt = 0
    """Sets of augmented and mixed images that are made and labelled by the teacher once, one in each of the first
    epochs, and used in turn by the later ones; 0 makes new ones in every epoch. They take a quarter of the memory at
    most, and larger ones temporary files beside the checkpoint."""
    checkpoint_every_epochs: PositiveInt = 5
    """Epochs between two checkpoints; does not affect the result."""

    @property
    def needs(self) -> Access:
        """The access to the teacher that the distillation needs."""
        if self.feature_weight > 0 or self.start == "pruned":
            return "layers"
        return "gradient" if self.disagreement.share > 0 else "labels"

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher runs on every batch; otherwise, its stored logits are the labels."""
        return self.augmentation.is_active or self.mixing != "none" or self.feature_weight > 0

    def faults(self) -> Iterator[str]:
        """Yield the faults that the range checks of single fields miss."""
        if self.student != AUTO and (fault := architecture_fault(self.student)):
            yield f"student: {fault}"
        if fault := argument_fault(self.student, self.student_arguments):
            yield f"student_arguments: {fault}"
