"""The kind of a network's output, detected from its values, and the conversion to logits.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.errors import TeacherError

__all__ = ["OutputKind", "find_output_key", "find_output_kind", "select_output", "to_logits"]

OutputKind = Literal["logits", "log_probabilities", "probabilities", "binary_logit", "binary_probability"]
"""Logits up to a constant per image, probabilities, or one number for two classes before or after the sigmoid."""

# Well below the rounding of a softmax in half precision over 1,000 classes.
_SUM_TOLERANCE = 2e-3


def select_output(output: Any, key: str) -> Tensor:
    """Return the tensor at `key` of a network's output: an index of a tuple, a key of a mapping, empty for a tensor.

    Raises:
        TeacherError: There is no tensor.
    """
    found = output
    if key:
        try:
            found = output[int(key)] if key.lstrip("-").isdigit() and not isinstance(output, Mapping) else output[key]
        except (KeyError, IndexError, TypeError):
            found = getattr(output, key, None)
    if not isinstance(found, Tensor):
        raise TeacherError(
            f"The network returns {_describe(output)}, in which {key!r} is not a tensor. Set teacher.source.output_key"
        )
    return found


def find_output_key(output: Any) -> str:
    """Return the most likely key of the logits.

    Raises:
        TeacherError: The output holds no tensor, or several tensors could be the logits.
    """
    if isinstance(output, Tensor):
        return ""
    if isinstance(output, Mapping):
        tensors = [str(name) for name, value in output.items() if isinstance(value, Tensor)]
        named = [name for name in ("logits", "out", "output", "predictions") if name in tensors]
        if named or len(tensors) == 1:
            return (named or tensors)[0]
    elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return "0"
    raise TeacherError(
        f"The network returns {_describe(output)}, and it is unclear which part holds the logits. Set "
        "teacher.source.output_key to a key or an index"
    )


def find_output_kind(outputs: Tensor) -> OutputKind:
    """Return the kind of a network's output, detected from its values.

    Args:
        outputs: Outputs [n, k] to n different images.

    Raises:
        TeacherError: The outputs are not of rank 2 or are not numbers.
    """
    if not outputs.is_floating_point():
        raise TeacherError(
            f"The network returns {outputs.dtype}, which has no gradient: class numbers, perhaps. A teacher must "
            "return logits or probabilities"
        )
    if outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1):
        is_share = bool(((outputs >= 0) & (outputs <= 1)).all())
        return "binary_probability" if is_share else "binary_logit"
    if outputs.dim() != 2:
        raise TeacherError(
            f"The network returns shape {tuple(outputs.shape)} for {len(outputs)} images; a classifier's is (images, "
            "classes). If it returns several tensors, set teacher.source.output_key"
        )
    sums = outputs.double().sum(1)
    if (outputs >= 0).all() and ((sums - 1).abs() < _SUM_TOLERANCE).all():
        return "probabilities"
    log_sums = outputs.double().exp().sum(1)
    if (outputs <= 0).all() and ((log_sums - 1).abs() < _SUM_TOLERANCE).all():
        return "log_probabilities"
    return "logits"


def to_logits(outputs: Tensor, kind: OutputKind) -> Tensor:
    """Return the logits [n, k] whose softmax is the network's prediction.

    Log-probabilities are logits already. Probabilities are replaced by their logarithm; a probability that underflows
    counts as the smallest normal number.

    Args:
        outputs: [n, k]; [n] or [n, 1] for the binary kinds, whose number is that of the second class.
        kind: Kind of the outputs.
    """
    if kind == "probabilities":
        return outputs.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    if kind == "binary_logit":
        return functional.pad(outputs.reshape(-1, 1), (1, 0))
    if kind == "binary_probability":
        share = outputs.float().reshape(-1, 1)
        smallest = torch.finfo(torch.float32).tiny
        return torch.cat([(1 - share).clamp_min(smallest).log(), share.clamp_min(smallest).log()], 1)
    return outputs


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)} ({', '.join(type(item).__name__ for item in output[:5])})"
    return f"a {type(output).__name__}"
