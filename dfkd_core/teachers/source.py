"""Where a trained teacher comes from and what is known about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from dfkd_core.sections import NonNegativeInt, config_section

__all__ = ["SourceConfig"]


@config_section
class SourceConfig:
    """A trained teacher from elsewhere, see docs/teachers.md; without a `model` one is trained on the data set."""

    model: str = ""
    """`torchvision:NAME`, `timm:NAME`, `package.module:factory`, a built-in network, a `.pt2`, TorchScript or ONNX
    file, a folder of dfkd's own, or `models:/NAME@ALIAS` and `runs:/ID/PATH` of MLflow; empty trains one."""
    weights: str = ""
    """File with the weights: `.safetensors`, or a state dict in `.pt` or `.pth`. For torchvision and timm also
    `pretrained` or the name of published weights."""
    weights_key: str = ""
    """Key of the state dict in the file, for example `state_dict_ema`; empty takes the usual one."""
    sha256: str = ""
    """Digest of what the teacher is read from; `dfkd run` notes it, so that a changed file is seen."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function that builds the network."""
    in_channels: NonNegativeInt = 0
    """Channels of an input image; 0 finds out."""
    image_size: NonNegativeInt = 0
    """Height and width of an input image in pixels; 0 finds out."""
    num_classes: NonNegativeInt = 0
    """Number of classes; 0 finds out."""
    mean: tuple[float, ...] = ()
    """Mean that its training subtracted from the pixels, in the units of `value_range`, one per channel or one for all;
    empty takes what the source says, or 0."""
    std: tuple[float, ...] = ()
    """Standard deviation that its training divided by; empty takes what the source says, or 1."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Pixel values of black and white before `mean` and `std`: 0 and 1, 0 and 255, or -1 and 1."""
    outputs: Literal["auto", "logits", "log_probabilities", "probabilities", "binary_logit", "binary_probability"] = (
        "auto"
    )
    """What the network answers with; `auto` finds out."""
    output_key: str | int = ""
    """Key or index of the logits where the network answers with several tensors; empty finds out."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the outputs; may be empty."""
    trust_pickle: bool = False
    """Whether a pickled module may be loaded, which runs whatever its maker put into the file."""

    def faults(self) -> Iterator[str]:
        """Yield what no single field shows."""
        low, high = self.value_range
        if not low < high:
            yield f"value_range must go up, got {list(self.value_range)}"
        if any(not value > 0 for value in self.std):
            yield f"std must be above 0, got {list(self.std)}"
        if not self.model and self.weights:
            yield "model must be named with weights: the architecture that they belong to"
