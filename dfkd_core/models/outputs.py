"""What a network answers with, found out by looking, and made into logits.

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
    """Return the tensor at `key` of a network's answer: an index of a tuple, a key of a mapping, empty for a tensor.

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
            f"The network answers with {_describe(output)}, of which {key!r} is no tensor. Set "
            "teacher.source.output_key"
        )
    return found


def find_output_key(output: Any) -> str:
    """Return the key under which the logits most likely are.

    Raises:
        TeacherError: The answer holds no tensor, or it cannot be told which.
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
        f"The network answers with {_describe(output)}, and it cannot be told where the logits are. Set "
        "teacher.source.output_key to a key or an index"
    )


def find_output_kind(outputs: Tensor) -> OutputKind:
    """Tell by the numbers what a network answers with.

    Args:
        outputs: Answers [n, k] to n different images.

    Raises:
        TeacherError: They have another rank or are no numbers.
    """
    if not outputs.is_floating_point():
        raise TeacherError(
            f"The network answers with {outputs.dtype}, which has no gradient: class numbers, perhaps. A teacher must "
            "answer with logits or probabilities"
        )
    if outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1):
        is_share = bool(((outputs >= 0) & (outputs <= 1)).all())
        return "binary_probability" if is_share else "binary_logit"
    if outputs.dim() != 2:
        raise TeacherError(
            f"The network answers {len(outputs)} images with shape {tuple(outputs.shape)}; a classifier's is (images, "
            "classes). If it answers with several tensors, set teacher.source.output_key"
        )
    sums = outputs.double().sum(1)
    if (outputs >= 0).all() and ((sums - 1).abs() < _SUM_TOLERANCE).all():
        return "probabilities"
    log_sums = outputs.double().exp().sum(1)
    if (outputs <= 0).all() and ((log_sums - 1).abs() < _SUM_TOLERANCE).all():
        return "log_probabilities"
    return "logits"


def to_logits(outputs: Tensor, kind: OutputKind) -> Tensor:
    """Return logits [n, k] whose softmax is what the network means.

    Log-probabilities are logits already. Of probabilities the logarithm is taken; those that underflow count as the
    smallest normal number.

    Args:
        outputs: [n, k]; [n] or [n, 1] for the binary kinds, whose second class is the one that the number speaks for.
        kind: What they are.
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
