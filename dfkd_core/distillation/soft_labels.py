"""The loss between two networks' outputs at a temperature, and the choice of that temperature without data.

n images, k classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.rows import Rows
from dfkd_core.errors import DistillationError

__all__ = ["VALUES_AT_ONCE", "distillation_loss", "loss_terms", "temperature_of_confidence"]

_COLDEST, _HOTTEST = 1e-3, 1e4
VALUES_AT_ONCE = 2**24
"""Logits of a large set that are read at once, to bound the memory."""


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, mse_weight: float = 0.0
) -> Tensor:
    """Return T^2 KL(teacher || student) at temperature T, plus `mse_weight` times the logits' mean squared difference.

    The KL term is a mean over images (Hinton et al., 2015, arXiv 1503.02531, section 2).

    Args:
        student_logits: Logits [n, k].
        teacher_logits: Logits [n, k].
        temperature: T.
        mse_weight: Weight of the mean over images and classes of (student - teacher)^2.
    """
    terms = loss_terms(student_logits, teacher_logits, temperature=temperature, mse_weight=mse_weight)
    return torch.stack(tuple(terms.values())).sum()


def loss_terms(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, mse_weight: float
) -> dict[str, Tensor]:
    """Return the terms of `distillation_loss` with the same arguments: `kl`, and `mse` if it has a weight."""
    student_log = functional.log_softmax(student_logits / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher_logits / temperature, dim=1)
    divergence = functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")
    terms = {"kl": temperature**2 * divergence}
    if mse_weight:
        terms["mse"] = mse_weight * functional.mse_loss(student_logits, teacher_logits)
    return terms


def temperature_of_confidence(logits: Rows, confidence: float) -> float:
    """Return the temperature T at which the mean over images of max softmax(logits / T) is `confidence`.

    That mean falls from 1 to 1/k as T rises, so bisection finds T, here to about six digits.

    Args:
        logits: The teacher's logits [n, k] on a transfer set.
        confidence: Between 1/k and 1.

    Raises:
        DistillationError: No T from 0.001 to 10,000 gives this confidence.
    """

    def mean_confidence(log_temperature: float) -> float:
        parts = (logits[first : first + rows_at_once] for first in range(0, len(logits), rows_at_once))
        largest = [(part.double() / math.exp(log_temperature)).softmax(1).amax(1) for part in parts]
        return torch.cat(largest).mean().item()

    rows_at_once = max(1, VALUES_AT_ONCE // logits.shape[1])
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    if not mean_confidence(high) <= confidence <= mean_confidence(low):
        raise DistillationError(
            f"No temperature gives the teacher a mean confidence of {confidence} on this transfer set; it goes from "
            f"{mean_confidence(high):.4f} to {mean_confidence(low):.4f}. Change distillation.confidence, or set it to "
            "0 to use distillation.temperature"
        )
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_confidence(middle) > confidence else (low, middle)
    return math.exp((low + high) / 2)
