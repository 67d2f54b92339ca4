"""How a student is trained on a transfer set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from dfkd_core.distillation.disagreement import DisagreementConfig
from dfkd_core.distillation.mixing import Mixing
from dfkd_core.models.architectures import architecture_fault
from dfkd_core.sections import Fraction, NonNegative, Positive, PositiveInt, config_section
from dfkd_core.training.augmentation import AugmentationConfig

__all__ = ["DistillationConfig"]


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
    feature_weight: NonNegative = 8.0
    """Weight of the squared difference of inner outputs over the teacher's variance. Above 0 the teacher runs
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
