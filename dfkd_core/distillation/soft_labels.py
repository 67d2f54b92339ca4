"""The loss between two networks' outputs at a temperature.

n images, k classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["distillation_loss"]


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) at temperature T, averaged over images.

    Hinton et al., 2015, arXiv 1503.02531, section 2.

    Args:
        student_logits: Logits [n, k].
        teacher_logits: Logits [n, k].
        temperature: T, above 0.
    """
    student_log = functional.log_softmax(student_logits / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")
