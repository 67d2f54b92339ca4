"""The student before its training: its card, whether it can be built, and its first weights."""

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
"""What a student's first weights were: drawn, or a thinner copy of the teacher."""


def student_card(teacher: ModelCard, config: DistillationConfig) -> ModelCard:
    """Return the card of a student of this teacher: the same input and classes, its own network; no layer yet."""
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
    """Check, before anything expensive, that the student can be built for this teacher's images and classes.

    Raises:
        ConfigError: It cannot, or its answer is not one of logits for each class.
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
            f"{teacher.num_classes} classes it must be {(2, teacher.num_classes)}. Set distillation.student_arguments"
        )


def build_student(
    teacher: Labeller, images: Rows, config: DistillationConfig, *, seed: int, is_resumed: bool
) -> tuple[Classifier, Start]:
    """Return the student with its first weights, and which these are.

    Args:
        teacher: What a thinner copy is made of; `auto` takes drawn weights if it does not show its layers.
        images: uint8 images [n, c, h, w] on which the copy is fitted.
        config: The student's network and its start.
        seed: Seed of drawn weights.
        is_resumed: Whether the weights come from a checkpoint, so that a copy need not be fitted.

    Raises:
        DistillationError: The start is `pruned` and the student is not a thinner copy of the teacher.
    """
    student = build_classifier(student_card(teacher.card, config), seed=seed)
    shown = cast(Inspectable, teacher) if has_access(teacher, "layers") else None
    if config.start == "random" or shown is None or (config.start == "auto" and not can_prune(shown, student.network)):
        return student, "random"
    if not is_resumed:
        prune_into(shown, student.network, images)
    return student, "pruned"
