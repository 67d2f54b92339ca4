"""The output that a student returns in training mode: which of several is the one of evaluation.

A network can return its auxiliary heads in training too, in any order. Training the wrong one would leave the weights
of the evaluated one as they were drawn.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.outputs import describe_output, find_output_key, select_output, tensor_keys

__all__ = ["find_training_key"]

_MATRIX = 2
_RTOL = 1e-4


def find_training_key(student: Classifier, images: Tensor) -> str:
    """Return the key of the output in training mode that is the output of evaluation; empty for a single tensor.

    Two signs are used: a gradient from the output reaches the last weights before the output of evaluation, and both
    have the same values while dropout and BatchNorm are as in evaluation. An output with both signs is preferred to the
    usual one, which needs the first sign only.

    Args:
        student: Its card has the key of the output in evaluation. Its state does not change.
        images: Two or more images [n, c, h, w] in [0, 1].

    Raises:
        ConfigError: No output is clearly the one of evaluation.
        Exception: Any error of the network's forward.
    """
    is_training, key = student.training, student.card.output_key
    try:
        # Dropout draws from the global generator.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), _unchanged_buffers(student.network):
            evaluated = select_output(student.eval().answer(images), key)
            answer = _with_parts_as_in_evaluation(student.train()).answer(images)
        return _chosen(student, evaluated, answer)
    finally:
        student.train(is_training)


def _chosen(student: Classifier, evaluated: Tensor, answer: Any) -> str:
    names = {id(weight): name for name, weight in student.network.named_parameters()}
    last = _last_weights(evaluated)
    keys = [key for key in tensor_keys(answer) if select_output(answer, key).shape == evaluated.shape]
    equal = [key for key in keys if _is_equal(select_output(answer, key), evaluated)]
    # An evaluation without gradients has no last weights, and then only the values decide.
    reaching = [key for key in keys if not last or _reaches(select_output(answer, key), last)]
    usual = _usual_key(answer, student.card.output_key)
    for fitting in ([key for key in reaching if key in equal], reaching):
        if usual in fitting or len(fitting) == 1:
            return usual if usual is not None and usual in fitting else fitting[0]
    if usual is not None and not (keys and last):
        return usual
    shown = next((names[id(weight)] for weight in last if id(weight) in names), "its last weight")
    reason = "no gradient of it reaches" if not reaching else "several parts of it reach"
    raise ConfigError(
        f"The student {student.card.network} returns {describe_output(answer)} in training mode, and it is unclear "
        f"which part is its output in evaluation: {reason} {shown}, on which that output depends. Let it return the "
        "logits of evaluation first, or in a dictionary under the key logits"
    )


def _usual_key(answer: Any, key: str) -> str | None:
    """Return the key that is taken without any sign, None if there is none."""
    try:
        found = key or find_output_key(answer)
        select_output(answer, found)
    except TeacherError:
        return None
    return found


def _is_equal(output: Tensor, evaluated: Tensor) -> bool:
    scale = float(evaluated.detach().abs().amax())
    return torch.allclose(output.detach(), evaluated.detach(), rtol=_RTOL, atol=_RTOL * scale)


def _reaches(output: Tensor, weights: list[Tensor]) -> bool:
    if not output.requires_grad:
        return False
    gradients = torch.autograd.grad(output.sum(), weights, allow_unused=True, retain_graph=True)
    return any(gradient is not None for gradient in gradients)


def _last_weights(output: Tensor) -> list[Tensor]:
    """Return the trained matrices and kernels nearest to an output in its graph, or else the nearest other weights."""
    vectors: list[Tensor] = []
    seen, nodes = set(), [output.grad_fn]
    while nodes:
        weights: list[Tensor] = [weight for node in nodes if (weight := getattr(node, "variable", None)) is not None]
        if matrices := [weight for weight in weights if weight.dim() >= _MATRIX]:
            return matrices
        vectors = vectors or weights
        seen.update(nodes)
        after = dict.fromkeys(inner for node in nodes if node is not None for inner, _ in node.next_functions)
        nodes = [node for node in after if node is not None and node not in seen]
    return vectors


def _with_parts_as_in_evaluation(student: Classifier) -> Classifier:
    """Set the layers without parts of their own to eval mode: BatchNorm, dropout, skipped blocks."""
    for module in student.network.modules():
        if module is not student.network and not any(module.children()):
            module.eval()
    return student


@contextmanager
def _unchanged_buffers(network: nn.Module) -> Iterator[None]:
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name in before and before[name].shape == buffer.shape:
                    buffer.copy_(before[name])
