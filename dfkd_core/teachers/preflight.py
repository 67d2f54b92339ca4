"""Checks, before any expensive work, that a network can be a teacher. Each fault is one sentence.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.seeding import normal_rows
from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier

__all__ = ["check_teacher", "probe_images", "try_forward"]

_NUM_PROBES = 16
# Relative to the outputs' scale: above the rounding of another order of sums, below the effect of dropout.
_SAME = 1e-4
_CONSTANT = 1e-6


def probe_images(image_shape: tuple[int, int, int], num_images: int = _NUM_PROBES) -> Tensor:
    """Return fixed images in [0, 1], float32 [n, c, h, w]: one half soft blots, the other half noise."""
    channels, height, width = image_shape
    blots = normal_rows(0, "preflight blots", range(num_images - num_images // 2), (channels, 4, 4))
    noise = normal_rows(0, "preflight noise", range(num_images // 2), image_shape)
    drawn = torch.cat([functional.interpolate(blots, (height, width), mode="bilinear"), noise])
    return (0.5 + 0.25 * drawn).clamp(0, 1)


def try_forward(network: torch.nn.Module, images: Tensor) -> object:
    """Call a network the way a teacher is called, and return its answer, which may be of any type.

    Raises:
        TeacherError: The network does not accept a single tensor of float images.
    """
    try:
        with torch.no_grad():
            return network(images)
    except TypeError as error:
        raise TeacherError(
            f"The network cannot be called with images alone: {error}. A teacher's forward takes one tensor of images; "
            "wrap a network that needs more inputs in a module that fixes them"
        ) from error
    except (RuntimeError, ValueError, IndexError, AssertionError, NotImplementedError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise TeacherError(
            f"The network rejects float images of shape {tuple(images.shape[1:])}: {first}. Set "
            "teacher.source.in_channels and image_size if the shape is wrong"
        ) from error


def check_teacher(classifier: Classifier, images: Tensor) -> list[str]:
    """Check that a classifier in eval mode can be a teacher, and return notes on oddities that do not prevent it.

    Args:
        classifier: The network and its properties.
        images: Different images [n, c, h, w] in [0, 1], see `probe_images`.

    Raises:
        TeacherError: An output is not finite, changes from call to call, is the same for all images, or has no
            gradient with respect to the image.
    """
    with torch.no_grad():
        logits = classifier(images).float()
        again = _from_another_random_state(classifier, images)
        alone = classifier(images[:1]).float()
    if tuple(logits.shape) != (len(images), classifier.card.num_classes):
        raise TeacherError(
            f"The teacher answers {len(images)} images with shape {tuple(logits.shape)}; with "
            f"{classifier.card.num_classes} classes, it must be {(len(images), classifier.card.num_classes)}. Correct "
            "teacher.source.num_classes"
        )
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise TeacherError(
            f"The teacher's output is NaN or Inf for {bad} of {len(images)} probe images. Check its weights and the "
            "range of its input (teacher.source.value_range, mean, std)"
        )
    scale = logits.abs().amax().clamp_min(1e-12)
    change = float((logits - again).abs().amax() / scale)
    if change > _SAME:
        raise TeacherError(
            f"The teacher's output for the same images changes by {change:.2%} from call to call, so it draws random "
            "numbers in eval mode (a dropout that is always on, perhaps). Turn that off in its forward"
        )
    if float(logits.std(0).amax() / scale) < _CONSTANT:
        raise TeacherError(
            "The teacher's output is the same for all probe images, so nothing can be learnt from it. Check that its "
            "weights were loaded, and the range of its input (teacher.source.value_range, mean, std)"
        )
    _check_gradient(classifier, images)
    notes = []
    if float((alone - logits[:1]).abs().amax() / scale) > 100 * _SAME:
        notes.append(
            "an image's output depends on the other images of its batch (a BatchNorm without running statistics, "
            "perhaps), so results depend on synthesis.batch_size"
        )
    return notes


def _from_another_random_state(classifier: Classifier, images: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        logits: Tensor = classifier(images).float()
    return logits


def _check_gradient(classifier: Classifier, images: Tensor) -> None:
    pixels = images.clone().requires_grad_(True)
    reason = ""
    gradient = None
    try:
        logits = classifier(pixels)
        # Unequal weights, since the gradient of the plain sum of outputs can be zero.
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), pixels, allow_unused=True)
    except (RuntimeError, ValueError) as error:
        reason = f" ({(str(error).splitlines() or [''])[0][:150]})"
    if gradient is None or not gradient.abs().sum() > 0:
        raise TeacherError(
            f"No gradient reaches the image through the teacher{reason}, so images cannot be moved towards a target. "
            "Something in its forward detaches it (no_grad, detach, rounding, a quantised layer): load it without that"
        )
