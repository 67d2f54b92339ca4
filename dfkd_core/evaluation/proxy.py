"""The quality of a student without real data: its agreement with the teacher on images of a held-out prior.

The form was chosen on scikit-learn's digits only, over the students of 48 random recipes whose real accuracy ranges
from 10 to 99.9 %. r is its Pearson correlation with the real accuracy over all students, rho its Spearman correlation
over the better half:

| form | r, all | rho, better half |
|---|---|---|
| agreement | 0.936 | 0.944 |
| agreement, each class alike | 0.940 | 0.962 |
| agreement weighted by the teacher's margin | 0.955 | 0.945 |
| agreement weighted by the margin, each class alike (this one) | 0.959 | 0.957 |
| shared probability mass, each class alike | 0.934 | 0.957 |
| -KL at temperature 1 / 4 | 0.734 / 0.908 | 0.947 / 0.937 |
| explained variance of the logits | 0.942 | 0.917 |

Real images have large margins and evenly distributed classes; images of no class have neither. Both weights correct
for that. A mean over shifted images did not help. docs/proxy.md has the rest and the results on Fashion-MNIST.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_core.common.pixels import quantise
from dfkd_core.data.fitting import FittedImages, resize
from dfkd_core.errors import TeacherError
from dfkd_core.models.access import Labeller
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.passes import PassSizes, joined
from dfkd_core.priors.table import PriorName, build_prior

__all__ = ["HELD_OUT_PRIOR", "held_out_images", "held_out_logits", "proxy_score", "weighted_agreement"]

HELD_OUT_PRIOR: PriorName = "mosaic"
"""Held-out prior: methods train on it only on request, and the score of a student that did is meaningless."""

_STREAM = "proxy"


def proxy_score(
    teacher: Labeller, student: Classifier, *, num_images: int = 20_000, seed: int = 0, batch_size: int = 500
) -> float:
    """Return the agreement of student and teacher on held-out images as a score from 0 to 1 (always the same class).

    It ranks students of one teacher; it is not an estimate of an accuracy. The draw of the images changes the
    difference of two students by 0.002 (digits) to 0.015 (Fashion-MNIST, whose teacher rarely predicts some classes).

    Args:
        teacher: The reference for the student; its device computes.
        student: It is moved to the teacher's device and put into eval mode.
        num_images: Held-out images n.
        seed: Seed of the images; the same for all students to be compared.
        batch_size: Images per forward pass; does not change the score beyond rounding.

    Raises:
        TeacherError: The teacher predicts one class for all images, so that students cannot be compared.

    Example:
        >>> from dfkd_core import ModelCard, Teacher, build_classifier, proxy_score
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> proxy_score(teacher, build_classifier(card, seed=0), num_images=50)  # a copy of the teacher
        1.0
        >>> proxy_score(teacher, build_classifier(card, seed=1), num_images=50) < 0.5  # an untrained network
        True
    """
    logits = held_out_logits(teacher, student, num_images=num_images, seed=seed, batch_size=batch_size)
    if (logits[0].argmax(1) == logits[0][0].argmax()).all():
        raise TeacherError(
            f"The teacher predicts class {int(logits[0][0].argmax())} for all {num_images} held-out images, so "
            "students cannot be compared on them. Check the teacher, or compare students on real images"
        )
    return weighted_agreement(*logits)


def weighted_agreement(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Return the mean over the teacher's classes of the share of its margin on which the student predicts its class.

    With a_i the teacher's class, b_i the student's and m_i the teacher's margin, the difference of its two largest
    logits, on image i:

        mean over classes k that occur of  (sum_{a_i = k = b_i} m_i) / (sum_{a_i = k} m_i)

    Args:
        teacher_logits: [n, k]; not all of them ties.
        student_logits: [n, k].
    """
    largest, answers = teacher_logits.double().topk(2, dim=1)
    margins, classes = largest[:, 0] - largest[:, 1], answers[:, 0]
    same = student_logits.argmax(1) == classes
    zeros = torch.zeros(teacher_logits.shape[1], dtype=torch.float64)
    totals, kept = (zeros.index_add(0, classes, weights) for weights in (margins, margins * same))
    return (kept[totals > 0] / totals[totals > 0]).mean().item()


def held_out_images(image_shape: tuple[int, int, int], num_images: int, *, seed: int = 0) -> FittedImages:
    """Return held-out images as uint8 [n, c, h, w], painted when they are indexed.

    Args:
        image_shape: Shape (c, h, w) of one image.
        num_images: Images n.
        seed: Seed of the images, those of `proxy_score`.
    """
    prior = build_prior(HELD_OUT_PRIOR, image_shape)

    def paint(positions: list[int]) -> list[Tensor]:
        return [quantise(prior.decode(prior.start(positions, seed=seed, stream=_STREAM)))]

    return FittedImages(paint, num_images, image_shape, resize)


@torch.inference_mode()
def held_out_logits(
    teacher: Labeller, student: Classifier, *, num_images: int = 20_000, seed: int = 0, batch_size: int = 500
) -> tuple[Tensor, Tensor]:
    """Return the logits [n, k] of teacher and student on held-out images, on the CPU.

    Arguments as in `proxy_score`.
    """
    student = student.to(teacher.device).eval()
    own_passes = PassSizes(student, memory=teacher.memory)
    prior = build_prior(HELD_OUT_PRIOR, teacher.card.image_shape)
    parts = []
    for first in range(0, num_images, batch_size):
        indices = range(first, min(first + batch_size, num_images))
        images = prior.decode(prior.start(indices, seed=seed, stream=_STREAM)).to(teacher.device)
        images = images.contiguous(memory_format=torch.channels_last)
        parts.append((teacher.label(images).cpu(), joined([student(part).cpu() for part in own_passes.split(images)])))
    teacher_logits, student_logits = (torch.cat(logits) for logits in zip(*parts, strict=True))
    return teacher_logits, student_logits
