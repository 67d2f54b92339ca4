"""The untrained student: its card, a check that it can be built, and its first weights."""

from __future__ import annotations

import dataclasses
from typing import Literal, cast

import torch

from dfkd_core.common.pixels import grey_images
from dfkd_core.common.rows import Rows
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.pruning import can_prune, prune_into
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.access import Inspectable, Labeller, has_access
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier

__all__ = ["Start", "build_student", "check_student", "student_card"]

Start = Literal["random", "pruned"]
"""The kind of a student's first weights: drawn, or a thinner copy of the teacher."""


def student_card(teacher: ModelCard, config: DistillationConfig) -> ModelCard:
    """Return the card of a student of this teacher: same input and classes, its own network, no modelled layer yet."""
    return dataclasses.replace(
        teacher,
        network=config.student,
        arguments=config.student_arguments,
        layer="",
        outputs="logits",
        output_key="",
        program_sha256="",
    )


@torch.no_grad()
def check_student(teacher: ModelCard, config: DistillationConfig) -> None:
    """Check, before any expensive work, that the student can be built for this teacher's images and classes.

    Raises:
        ConfigError: The student cannot be built, or its output is not one logit per class.
    """
    student = build_classifier(student_card(teacher, config), seed=0).eval()
    try:
        shape = tuple(student(grey_images(2, teacher.image_shape)).shape)
    except (TeacherError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The student {config.student} cannot take the teacher's images {teacher.image_shape}: {error}. "
            "Choose another distillation.student"
        ) from error
    if shape != (2, teacher.num_classes):
        raise ConfigError(
            f"The student {config.student} answers 2 images with shape {shape}; for the teacher's "
            f"{teacher.num_classes} classes, it must be {(2, teacher.num_classes)}. Set distillation.student_arguments"
        )


def build_student(
    teacher: Labeller, images: Rows, config: DistillationConfig, *, seed: int, is_resumed: bool
) -> tuple[Classifier, Start]:
    """Return the student with its first weights, and the kind of these weights.

    Args:
        teacher: The network to copy from. If its layers are not accessible, the weights are drawn.
        images: uint8 images [n, c, h, w] on which a thinner copy is fitted.
        config: The student's network and its start.
        seed: Seed of drawn weights.
        is_resumed: Whether a checkpoint will replace the weights, so that no copy is fitted.

    Raises:
        DistillationError: The start is `pruned` and the student cannot be a thinner copy of the teacher.
    """
    student = build_classifier(student_card(teacher.card, config), seed=seed)
    shown = cast(Inspectable, teacher) if has_access(teacher, "layers") else None
    if config.start == "random" or shown is None or (config.start == "auto" and not can_prune(shown, student.network)):
        return student, "random"
    if not is_resumed:
        prune_into(shown, student.network, images)
    return student, "pruned"
