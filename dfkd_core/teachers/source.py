"""The location and the known properties of an existing teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from dfkd_core.common.class_names import class_names_fault
from dfkd_core.models.architectures import argument_fault
from dfkd_core.sections import NonNegativeInt, config_section

__all__ = ["SourceConfig", "values_of"]


@config_section
class SourceConfig:
    """An existing teacher, see docs/teachers.md; if `model` is empty, a teacher is trained on the data set.

    Example:
        >>> from dfkd_core import SourceConfig
        >>> config = SourceConfig(model="lenet5", value_range=(0.0, 255.0), mean=(127.5,), std=(64.0,))
        >>> config.outputs, config.num_classes
        ('auto', 0)
        >>> SourceConfig(model="lenet5", std=(0.0,))
        Traceback (most recent call last):
            ...
        dfkd_core.errors.ConfigError: std must be above 0, got [0.0]
    """

    model: str = ""
    """`torchvision:NAME`, `timm:NAME`, `package.module:factory`, a built-in network, a `.pt2`, TorchScript or ONNX
    file, a model folder of dfkd, or `models:/NAME@ALIAS` or `runs:/ID/PATH` of MLflow; empty trains a teacher."""
    weights: str = ""
    """File with the weights: `.safetensors`, a state dict in `.pt`, `.pth` or `.bin`, or an index of several files
    (`.index.json`). For torchvision and timm also `pretrained` or the name of published weights."""
    weights_key: str = ""
    """Key of the state dict in the file, for example `state_dict_ema`, with dots if it is nested; empty takes the usual
    one."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions in the names of the weights and their replacements, for example `{"^backbone.": ""}`; a
    weight whose name becomes empty is left out. Usual wrappers need none."""
    sha256: str = ""
    """Digest of the teacher's files; `dfkd run` sets it to detect changes in them."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function that builds the network."""
    in_channels: NonNegativeInt = 0
    """Channels of an input image; 0 detects them."""
    image_size: NonNegativeInt = 0
    """Height and width of an input image in pixels; 0 detects them."""
    num_classes: NonNegativeInt = 0
    """Number of classes; 0 detects it."""
    mean: tuple[float, ...] | float = ()
    """Mean that its training subtracted from the pixels, in the units of `value_range`, one per channel or one for all;
    if both are empty, those of the source are used, or 0 and 1."""
    std: tuple[float, ...] | float = ()
    """Standard deviation that its training divided by; 1 if only `mean` is set."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Pixel values of black and white before `mean` and `std`: 0 and 1, 0 and 255, or -1 and 1."""
    outputs: Literal[
        "auto", "logits", "log_probabilities", "probabilities", "sigmoids", "binary_logit", "binary_probability"
    ] = "auto"
    """Kind of the network's output; `auto` detects it. `sigmoids` is one per class."""
    output_key: str | int = ""
    """Key or index of the logits if the network returns several tensors; empty detects it."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the outputs; may be empty."""
    trust_pickle: bool = False
    """Whether a pickled module, or weights inside objects, may be loaded, which runs any code in the file."""

    def faults(self) -> Iterator[str]:
        """Yield the faults that the range checks of single fields miss."""
        low, high = self.value_range
        if not low < high:
            yield f"value_range must go up, got {list(self.value_range)}"
        if any(not value > 0 for value in values_of(self.std)):
            yield f"std must be above 0, got {list(values_of(self.std))}"
        if not all(map(math.isfinite, (*values_of(self.mean), *values_of(self.std), low, high))):
            yield "mean, std and value_range must be finite numbers"
        yield from (fault for rule in self.rename.items() if (fault := _rule_fault(*rule)))
        if fault := class_names_fault(self.class_names):
            yield f"class_names: {fault}; give each class a name of its own, or leave the names out"
        if not self.model and self.weights:
            yield "model must be set if weights are: the architecture that they belong to"
        if loading := argument_fault(self.model, self.arguments):
            yield f"arguments: {loading}"


def values_of(numbers: tuple[float, ...] | float) -> tuple[float, ...]:
    """Return `mean` or `std` as a tuple."""
    return tuple(numbers) if isinstance(numbers, (tuple, list)) else (numbers,)


def _rule_fault(pattern: str, replacement: object) -> str:
    try:
        re.sub(pattern, str(replacement), "")
    except (re.error, IndexError) as error:
        return f"rename must map regular expressions to replacements, got {pattern!r}: {replacement!r} ({error})"
    return ""
