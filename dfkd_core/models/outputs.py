"""The kind of a network's output, detected from its values, and the conversion to logits.

n images, k classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.errors import TeacherError

__all__ = [
    "OutputKind",
    "Role",
    "check_output_kind",
    "describe_output",
    "find_output_key",
    "find_output_kind",
    "is_from_sigmoid",
    "output_doubt",
    "select_output",
    "tensor_keys",
    "to_logits",
]

OutputKind = Literal["logits", "log_probabilities", "probabilities", "sigmoids", "binary_logit", "binary_probability"]
"""Logits up to a constant per image, probabilities, a sigmoid per class, or one number for two classes before or after
the sigmoid."""

Role = Literal["teacher", "student"]
"""Whose output it is, for the remedies in messages: a student has no settings of its output."""

_CHOOSE: dict[Role, str] = {
    "teacher": "Set teacher.source.output_key to a key or an index",
    "student": "Let its forward return the logits alone, or in a dictionary under the key logits",
}
_KEEP: dict[Role, str] = {
    "teacher": ", or set teacher.source.outputs to logits if the numbers are scores",
    "student": "",
}
# Well below the rounding of a softmax in half precision over 1,000 classes.
_SUM_TOLERANCE = 2e-3
_LENGTH_TOLERANCE = 1e-4
# Of the spread of the numbers: a row's sum is constant if it changes less.
_CONSTANT_SUM = 1e-2
_FEWEST_ROWS = 3
_BINARY = ("binary_logit", "binary_probability")
_SHARES = ("probabilities", "sigmoids", "binary_probability")
# Operations that only change the form of a tensor.
_RESHAPING = re.compile(
    r"(Reshape|Unsafe)?(View|Alias|Squeeze|Unsqueeze|Clone|ToCopy|Select|Slice|Permute|Transpose|T)"
)


def select_output(output: Any, key: str, role: Role = "teacher") -> Tensor:
    """Return the tensor at `key` of a network's output: an index of a tuple, a key of a mapping, empty for a tensor.

    Raises:
        TeacherError: There is no tensor.
    """
    found = output
    if key:
        try:
            found = output[int(key)] if key.lstrip("-").isdigit() and key not in _keys(output) else output[key]
        except (KeyError, IndexError, TypeError):
            found = getattr(output, key, None)
    if not isinstance(found, Tensor):
        raise TeacherError(
            f"The network returns {describe_output(output)}, in which {key!r} is not a tensor. {_CHOOSE[role]}"
        )
    return found


def tensor_keys(output: Any) -> list[str]:
    """Return the keys of all tensors in a network's output, as `select_output` takes them."""
    if isinstance(output, Tensor):
        return [""]
    parts = output.items() if isinstance(output, Mapping) else enumerate(output if _is_row(output) else ())
    return [str(key) for key, part in parts if isinstance(part, Tensor)]


def _is_row(output: Any) -> bool:
    return isinstance(output, (tuple, list))


def _keys(output: Any) -> list[Any]:
    return list(output) if isinstance(output, Mapping) else []


def find_output_key(output: Any, num_classes: int = 0, role: Role = "teacher") -> str:
    """Return the most likely key of the logits.

    Args:
        output: Output of a network.
        num_classes: The number of classes that the user set; 0 if unknown.
        role: Whose output it is, for the message.

    Raises:
        TeacherError: The output holds no tensor, or several tensors could be the logits.
    """
    if isinstance(output, Tensor):
        return ""
    if num_classes and len(fitting := _of_width(output, num_classes)) == 1:
        return fitting[0]
    if isinstance(output, Mapping):
        tensors = tensor_keys(output)
        named = [name for name in ("logits", "out", "output", "predictions") if name in tensors]
        if named or len(tensors) == 1:
            return (named or tensors)[0]
    elif _is_row(output) and output and isinstance(output[0], Tensor):
        return "0"
    raise TeacherError(
        f"The network returns {describe_output(output)}, and it is unclear which part holds the logits. {_CHOOSE[role]}"
    )


def _of_width(output: Any, num_classes: int) -> list[str]:
    """Return the keys of the tensors [n, k] with k classes."""
    return [key for key in tensor_keys(output) if select_output(output, key).shape[1:] == (num_classes,)]


def find_output_kind(outputs: Tensor, role: Role = "teacher") -> OutputKind:
    """Return the kind of a network's output, detected from its values and, for sigmoids, from its autograd graph.

    Args:
        outputs: Outputs [n, k] to n different images, with their graph if it is available.
        role: Whose outputs they are, for the message.

    Raises:
        TeacherError: The outputs are not of rank 2, are not numbers, are the vectors of an embedding, or are another
            function of probabilities than those above.
    """
    if outputs.is_complex():
        raise TeacherError(f"The network returns complex numbers. A {role} must return logits or probabilities")
    if not outputs.is_floating_point():
        raise TeacherError(
            f"The network returns {outputs.dtype}, which has no gradient: class numbers, perhaps. A {role} must "
            "return logits or probabilities"
        )
    ends_with_sigmoid, outputs = is_from_sigmoid(outputs), outputs.detach()
    if outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1):
        is_share = bool(((outputs >= 0) & (outputs <= 1)).all())
        return "binary_probability" if is_share else "binary_logit"
    if outputs.dim() != 2:
        raise TeacherError(
            f"The network returns shape {tuple(outputs.shape)} for {len(outputs)} images; a classifier's is (images, "
            f"classes). If it returns several tensors: {_CHOOSE[role]}"
        )
    if (outputs >= 0).all() and _sum_to(outputs.double(), 1):
        return "probabilities"
    if (outputs <= 0).all() and _sum_to(outputs.double().exp(), 1):
        return "log_probabilities"
    if ends_with_sigmoid:
        return "sigmoids"
    lengths = outputs.double().norm(dim=1)
    if len(outputs) > 1 and ((lengths - 1).abs() < _LENGTH_TOLERANCE).all():
        raise TeacherError(
            f"The network returns vectors of length 1 with {outputs.shape[1]} numbers: an embedding for a metric, not "
            "scores of classes. Wrap it in a module that returns one score per class, such as the similarity to each "
            f"class's mean{_KEEP[role]}"
        )
    if found := _disguise(outputs.double()):
        raise TeacherError(
            f"The network returns {found}. As logits they would teach another distribution: let it return "
            f"probabilities, their natural logarithm or logits{_KEEP[role]}"
        )
    return "logits"


def _disguise(outputs: Tensor) -> str:
    """Return in words which function of probabilities the outputs [n, k] are, empty if none is recognised."""
    if _are_negated_logs(outputs):
        return "negated log-probabilities (exp(-x) sums to 1)"
    for base in (2, 10):
        if (outputs <= 0).all() and _sum_to(torch.full_like(outputs, base).pow(outputs), 1):
            return f"logarithms of probabilities to base {base}"
    if outputs.shape[1] > 2 and _are_shares((outputs + 1) / 2) and _sum_to((outputs + 1) / 2, 1):
        return "probabilities that are scaled to numbers from -1 to 1"
    sums = outputs.sum(1)
    is_one_sign = bool((outputs >= 0).all() or (outputs <= 0).all()) and bool(sums[0])
    if is_one_sign and len(sums) >= _FEWEST_ROWS and sums.std() < _CONSTANT_SUM * outputs.std(0).amax():
        return (
            f"numbers of one sign with the sum {float(sums.mean()):.4g} for each image, as probabilities times a "
            "factor or 1 minus probabilities have"
        )
    return ""


def _are_negated_logs(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and _sum_to((-outputs.double()).exp(), 1)


def _sum_to(outputs: Tensor, total: float) -> bool:
    return bool(((outputs.sum(1) - total).abs() < _SUM_TOLERANCE).all())


def output_doubt(outputs: Tensor, kind: OutputKind) -> str:
    """Return a sentence about a kind that its user should know or check, empty if there is nothing to add.

    Args:
        outputs: Outputs [n, k] of the network.
        kind: Their kind.
    """
    if kind == "sigmoids":
        return (
            "one sigmoid per class: only the likeliest class counts, so the student cannot learn that an image "
            "belongs to several classes"
        )
    if kind == "logits" and _are_shares(outputs):
        return (
            "its outputs are from 0 to 1 without a sum of 1, and are taken as logits. If they are one sigmoid per "
            "class, set teacher.source.outputs to sigmoids"
        )
    if kind == "logits" and bool((outputs >= 0).all() or (outputs <= 0).all()):
        return (
            "its outputs all have one sign, and are taken as logits: the largest is that of the likeliest class. If "
            "they are distances or costs, negate them in its forward"
        )
    return ""


def check_output_kind(outputs: Tensor, kind: OutputKind) -> None:
    """Check that a kind that the user set can be that of the outputs.

    Raises:
        TeacherError: The shape or the range of the outputs contradicts it.
    """
    allowed = "Correct teacher.source.outputs, or set it to auto"
    if (kind in _BINARY) != (outputs[0].numel() == 1) or outputs.dim() > 2:
        raise TeacherError(
            f"teacher.source.outputs is {kind}, and the network returns shape {tuple(outputs.shape)} for "
            f"{len(outputs)} images. {allowed}"
        )
    if kind in _SHARES and not _are_shares(outputs):
        raise TeacherError(
            f"teacher.source.outputs is {kind}, and the network returns numbers from {float(outputs.min()):.4g} to "
            f"{float(outputs.max()):.4g}. {allowed}"
        )
    if kind == "log_probabilities" and _are_negated_logs(outputs.detach()):
        raise TeacherError(
            f"teacher.source.outputs is {kind}, and the network returns them negated, from {float(outputs.min()):.4g} "
            f"to {float(outputs.max()):.4g}. Negate them in its forward"
        )
    sums = outputs.detach().double().sum(1) if kind == "probabilities" else outputs.new_ones(1)
    if bool(((sums - 1).abs() > _SUM_TOLERANCE).any()):
        raise TeacherError(
            f"teacher.source.outputs is {kind}, and the network returns rows with sums from {float(sums.min()):.4g} to "
            f"{float(sums.max()):.4g}. {allowed}"
        )


def _are_shares(outputs: Tensor) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1 + _SUM_TOLERANCE)).all())


def is_from_sigmoid(outputs: Tensor) -> bool:
    """Return whether a sigmoid was the last operation that changed the numbers."""
    node = outputs.grad_fn
    while node is not None and _RESHAPING.fullmatch(node.name().partition("Backward")[0].lstrip("_")):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(("Sigmoid", "Hardsigmoid"))


def to_logits(outputs: Tensor, kind: OutputKind) -> Tensor:
    """Return the logits [n, k] whose softmax is the network's prediction.

    Log-probabilities are logits already. Probabilities are replaced by their logarithm; a probability that underflows
    counts as the smallest normal number. A sigmoid is replaced by its argument, which is at most about 16. Other
    precisions become float32, unless autocast chose them.

    Args:
        outputs: [n, k]; [n] or [n, 1] for the binary kinds, whose number is that of the second class.
        kind: Kind of the outputs.
    """
    if outputs.dtype != torch.float32 and not torch.is_autocast_enabled(outputs.device.type):
        outputs = outputs.float()
    if kind == "probabilities":
        return outputs.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    if kind == "sigmoids":
        return outputs.float().logit(eps=torch.finfo(torch.float32).eps)
    if kind == "binary_logit":
        return functional.pad(outputs.reshape(-1, 1), (1, 0))
    if kind == "binary_probability":
        share = outputs.float().reshape(-1, 1)
        smallest = torch.finfo(torch.float32).tiny
        return torch.cat([(1 - share).clamp_min(smallest).log(), share.clamp_min(smallest).log()], 1)
    return outputs


def describe_output(output: Any) -> str:
    """Return what a network returns in words, for a message."""
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(str, output))}"
    if _is_row(output):
        return f"a {type(output).__name__} of {len(output)} ({', '.join(type(item).__name__ for item in output[:5])})"
    return f"a {type(output).__name__}"
