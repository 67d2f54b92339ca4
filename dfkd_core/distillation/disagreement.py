"""Moving images to where student and teacher disagree, so that the student is taught what it lacks.

The student's side of adversarial belief matching (Micaelli and Storkey, 2019, arXiv 1905.09768, equation 1), with steps
on the images in the place of a generator (projected gradient, Madry et al., 2018, arXiv 1706.06083, equation 1), and
never far from where they started, so that they stay what an image prior can draw.

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
    """How part of each batch is moved to where student and teacher disagree."""

    share: Fraction = 0.0
    """Share of a batch that is moved. Each step costs a forward and a backward pass of both networks on it."""
    steps: PositiveInt = 3
    """Gradient steps per image."""
    radius: Positive = 0.1
    """Largest change of a pixel, in grey levels of [0, 1]; keeps images near what was drawn."""


def seek_disagreement(
    teacher: Differentiable, student: nn.Module, images: Tensor, config: DisagreementConfig, *, temperature: float
) -> Tensor:
    """Move images up the divergence of the student from the teacher.

    Each step is the sign of the blurred gradient, so that shapes change and not single pixels, of a length at which the
    steps just reach the radius; changes are cut off at the radius and at black and white.

    Args:
        teacher: The frozen teacher.
        student: The student in training; its weights get no gradient, its running statistics and its modes stay.
        images: Float images [n, c, h, w] in [0, 1]; not changed.
        config: How far and in how many steps; all the images are moved.
        temperature: Temperature of the divergence.

    Returns:
        Images of the same shape, range and device.
    """
    size = teacher.passes.images_per_pass(len(images), with_gradient=True)
    if size < len(images):
        # The sign of a gradient does not depend on how many images the divergence is a mean over.
        parts = torch.split(images, size)
        return torch.cat([seek_disagreement(teacher, student, part, config, temperature=temperature) for part in parts])
    # In training mode these passes would change the running statistics of a BatchNorm.
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
    """Return maps [n, c, h, w] averaged twice over 3x3 pixels, about a Gaussian of one pixel."""
    for _ in range(2):
        maps = functional.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return maps
