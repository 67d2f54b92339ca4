"""Changes images so that student and teacher disagree on them, to train the student on its errors.

The student's side of adversarial belief matching (Micaelli and Storkey, 2019, arXiv 1905.09768, equation 1), with
gradient steps on the images instead of a generator (projected gradient, Madry et al., 2018, arXiv 1706.06083,
equation 1). Images stay close to their starts, and so to what an image prior can draw.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.distillation.soft_labels import distillation_loss
from dfkd_core.models.access import Differentiable
from dfkd_core.sections import Fraction, Positive, PositiveInt, config_section

__all__ = ["DisagreementConfig", "seek_disagreement"]


@config_section
class DisagreementConfig:
    """How part of each batch is changed so that student and teacher disagree on it."""

    share: Fraction = 0.0
    """Share of a batch that is changed. Each step costs a forward and a backward pass of both networks on it."""
    steps: PositiveInt = 3
    """Gradient steps per image."""
    radius: Positive = 0.1
    """Largest change of a pixel, in grey levels of [0, 1]; keeps images close to their starts."""


def seek_disagreement(
    teacher: Differentiable, student: nn.Module, images: Tensor, config: DisagreementConfig, *, temperature: float
) -> Tensor:
    """Change images to increase the divergence of the student from the teacher.

    Each step follows the sign of the blurred gradient, which changes shapes rather than single pixels. Its length is
    radius / steps; changes are clipped to the radius and pixels to [0, 1].

    Args:
        teacher: The frozen teacher.
        student: The student in training; its weights get no gradient, its running statistics and modes do not change.
        images: Float images [n, c, h, w] in [0, 1]; not changed.
        config: Radius and number of steps; `share` is ignored, all images are changed.
        temperature: Temperature of the divergence.

    Returns:
        Images of the same shape, range and device.
    """
    size = teacher.passes.images_per_pass(len(images), with_gradient=True)
    if size < len(images):
        # The sign of a gradient does not depend on the number of images in the mean.
        parts = torch.split(images, size)
        return torch.cat([seek_disagreement(teacher, student, part, config, temperature=temperature) for part in parts])
    # In training mode, these passes would change BatchNorm's running statistics.
    in_training = [module for module in student.modules() if module.training]
    student.eval()
    moved = images
    for _ in range(config.steps):
        moved = moved.detach().requires_grad_(True)
        with torch.enable_grad(), autocast_on_gpu(moved.device):
            logits, wanted = student(moved), teacher(moved.to(teacher.device)).to(moved.device)
            divergence = distillation_loss(logits.float(), wanted.float(), temperature=temperature)
        (gradient,) = torch.autograd.grad(divergence, moved)
        step = config.radius / config.steps * _blurred(gradient).sign()
        change = (moved.detach() + step - images).clamp_(-config.radius, config.radius)
        moved = (images + change).clamp_(0, 1)
    for module in in_training:
        module.training = True
    return moved


def _blurred(maps: Tensor) -> Tensor:
    """Return maps [n, c, h, w] averaged twice over 3x3 pixels, which approximates a Gaussian of one pixel."""
    for _ in range(2):
        maps = functional.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return maps
