"""The whole configuration of a run as one tree; each section is declared beside the code that it configures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from dfkd_core.data.datasets import NO_DATA, DataConfig, can_train, dataset_spec, is_built_in
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.pruning import check_thinner
from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.comparison import EvaluationConfig
from dfkd_core.evaluation.proxy import HELD_OUT_PRIOR
from dfkd_core.models.built_in import build_network
from dfkd_core.models.built_in import is_built_in as is_built_in_network
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, PositiveInt, config_section
from dfkd_core.statistics.estimation import StatisticsConfig
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.teachers.training import TeacherConfig

__all__ = ["ExecutionConfig", "Params", "RegistryConfig"]


@config_section
class ExecutionConfig:
    """Where and how a run computes; nothing in here changes a result beyond rounding."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    task_runner: Literal["processes", "threads"] = "processes"
    """What runs the shards of a synthesis."""
    num_workers: PositiveInt = 2
    """Shards made at once; above 1, distillation too takes a second core, for the teacher's labels."""
    num_threads: PositiveInt = 1
    """CPU threads of training and evaluation. More help ResNets and slow LeNets; a result's last bits depend on it."""
    memory_gib: NonNegative = 0.0
    """Memory in GiB that all workers together may compute in, 0 what is free. Batches of large networks that would not
    fit are split, or refused where they cannot be; then a result's last bits depend on it and on `num_workers`."""
    num_retries: NonNegativeInt = 2
    """Times a shard is tried again after a failure that is not its input's fault."""


@config_section
class RegistryConfig:
    """Where a finished student is logged and when it becomes the champion."""

    experiment: str = "dfkd"
    """MLflow experiment of the runs."""
    model_name: str = "dfkd-student"
    """Name of the registered model."""
    min_agreement: Fraction = 0.5
    """Share of images on which a champion must give the teacher's answer."""
    min_improvement: Annotated[float, Ge(-1)] = 0.0
    """How much more accurate than the champion a challenger must be to replace it, as a fraction."""


@config_section
class Params:
    """Everything that decides a run; the sections of `params.yaml`."""

    seed: NonNegativeInt = 0
    """Addresses every random draw."""
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def training_data(self) -> DataConfig | None:
        """Labelled images that a built-in teacher is trained on; None where the teacher is brought."""
        if self.teacher.source.model:
            return None
        return replace(self.data, dataset=self.teacher.dataset or self.data.dataset, class_order=())

    def faults(self) -> Iterator[str]:
        """Yield where sections do not fit each other; what comes from elsewhere is looked at when it is read."""
        training = self.training_data
        if training and not can_train(training.dataset):
            yield (
                f"teacher training needs a built-in data set or torchvision:NAME, got {training.dataset!r}: set "
                "teacher.dataset to one, or bring a trained teacher (teacher.source.model)"
            )
        path, steps = self.synthesis.steps_path, self.synthesis.method_config.steps
        if self.data.dataset == NO_DATA and steps and steps.prior == HELD_OUT_PRIOR:
            yield (
                f"with data.dataset {NO_DATA!r} the student is judged on images of the prior {HELD_OUT_PRIOR!r}, so it "
                f"must not be trained on them: set {path}.prior to another"
            )
        if training is None:
            return
        spec = dataset_spec(training.dataset) if is_built_in(training.dataset) else None
        # Whether an image size or a thinner start is possible does not depend on what is assumed here.
        shape = {
            "in_channels": self.data.channels or (spec.in_channels if spec else 3),
            "image_size": self.data.image_size,
            "num_classes": spec.num_classes if spec else 10,
        }
        try:
            # The shapes alone count: nothing is allocated or drawn.
            with torch.device("meta"):
                teacher = build_network(self.teacher.network, **shape)
                if not is_built_in_network(self.distillation.student):
                    return
                student = build_network(self.distillation.student, **shape)
            if self.distillation.start == "pruned":
                check_thinner(teacher, student)
        except DfkdError as error:
            yield str(error)
