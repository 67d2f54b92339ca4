"""Whether a network that is built again answers as before.

It does without `torch.testing`, which imports torch.distributed for seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["difference"]

_TOLERANCE = 1e-3


def difference(answers: Tensor, before: Tensor) -> str:
    """Return how answers differ from those before by more than rounding, empty if they do not; NaN always differs."""
    if answers.shape != before.shape:
        return f"its answer has shape {tuple(answers.shape)}, before {tuple(before.shape)}"
    if torch.allclose(answers, before, rtol=_TOLERANCE, atol=_TOLERANCE):
        return ""
    return f"its answers for the same images differ by up to {(answers - before).abs().max():.2g}"
