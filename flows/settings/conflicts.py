"""Where sections of params.yaml contradict each other. External teachers and data are checked when they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from dfkd_core.data.datasets import NO_DATA, DataConfig, can_train, dataset_spec, is_built_in
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.pruning import check_thinner
from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.proxy import HELD_OUT_PRIOR
from dfkd_core.models.built_in import build_network
from dfkd_core.models.built_in import is_built_in as is_built_in_network
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.teachers.training import TeacherConfig

__all__ = ["student_conflicts", "teacher_conflicts", "training_data"]


def training_data(data: DataConfig, teacher: TeacherConfig) -> DataConfig | None:
    """Return the labelled images that a built-in teacher is trained on; None if the teacher is from elsewhere."""
    if teacher.source.model:
        return None
    return dataclasses.replace(data, dataset=teacher.dataset or data.dataset, class_order=())


def teacher_conflicts(data: DataConfig, teacher: TeacherConfig, synthesis: SynthesisConfig) -> Iterator[str]:
    """Yield contradictions in the sections of a teacher."""
    training = training_data(data, teacher)
    if training and not can_train(training.dataset):
        yield (
            f"teacher training needs a built-in data set or torchvision:NAME, got {training.dataset!r}: set "
            "teacher.dataset to one, or name a trained teacher (teacher.source.model)"
        )
    path, steps = synthesis.steps_path, synthesis.method_config.steps
    if data.dataset == NO_DATA and steps and steps.prior == HELD_OUT_PRIOR:
        yield (
            f"with data.dataset {NO_DATA!r} the student is judged on images of the prior {HELD_OUT_PRIOR!r}, so it "
            f"must not be trained on them: set {path}.prior to another"
        )
    if training:
        try:
            # Only shapes are needed: nothing is allocated or drawn.
            with torch.device("meta"):
                build_network(teacher.network, **_shape(data, training))
        except DfkdError as error:
            yield str(error)


def student_conflicts(data: DataConfig, teacher: TeacherConfig, distillation: DistillationConfig) -> Iterator[str]:
    """Yield contradictions between the section of a student and its teacher, which can be built."""
    training = training_data(data, teacher)
    if training is None or not is_built_in_network(distillation.student):
        return
    shape = _shape(data, training)
    try:
        with torch.device("meta"):
            networks = [build_network(name, **shape) for name in (teacher.network, distillation.student)]
        if distillation.start == "pruned":
            check_thinner(*networks)
    except DfkdError as error:
        yield str(error)


def _shape(data: DataConfig, training: DataConfig) -> dict[str, Any]:
    """Return the shape of a network; what is not known does not affect whether it can be built."""
    spec = dataset_spec(training.dataset) if is_built_in(training.dataset) else None
    return {
        "in_channels": data.channels or (spec.in_channels if spec else 3),
        "image_size": data.image_size,
        "num_classes": spec.num_classes if spec else 10,
    }
