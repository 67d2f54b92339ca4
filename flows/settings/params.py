"""The configuration of a run as one tree; each section is declared next to the code that uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt

from dfkd_core.data.datasets import NO_DATA, DataConfig, can_train, dataset_spec, is_built_in
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.pruning import check_thinner
from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.comparison import EvaluationConfig
from dfkd_core.evaluation.proxy import HELD_OUT_PRIOR
from dfkd_core.models.built_in import build_network
from dfkd_core.models.built_in import is_built_in as is_built_in_network
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, config_section
from dfkd_core.statistics.estimation import StatisticsConfig
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.teachers.training import TeacherConfig

__all__ = ["ExecutionConfig", "Params", "RegistryConfig"]

_DEVICE = re.compile(r"auto|(cpu|cuda)(:\d+)?")
# MLflow's limits are 500 and 256 characters; the data set is appended to the name of the model.
_LONGEST_EXPERIMENT = 500
_LONGEST_MODEL_NAME = 100
# MLflow refuses `/` and `:`; other marks are ambiguous in addresses like models:/NAME@ALIAS.
_MODEL_NAME = re.compile(r"[^\W_][\w .-]*")


@config_section
class ExecutionConfig:
    """Where and how a run computes. These settings change a result by rounding at most."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    task_runner: Literal["processes", "threads"] = "processes"
    """How the shards of a synthesis run."""
    num_workers: Annotated[int, Ge(1), Le(1024)] = 2
    """Shards that are made at once. Above 1, distillation uses a second core for the teacher's labels."""
    num_threads: Annotated[int, Ge(1), Le(1024)] = 1
    """CPU threads of training and evaluation. More are faster for ResNets and slower for LeNets; the last bits of a
    result depend on it."""
    memory_gib: Annotated[float, Ge(0), Le(1e6)] = 0.0
    """Memory in GiB that all workers together may use; 0 uses the free memory. Batches of large networks that do not
    fit are split, or refused if they cannot be split. The last bits of a result then depend on it and on
    `num_workers`."""
    num_retries: Annotated[int, Ge(0), Le(1000)] = 2
    """Number of further attempts at a shard after a failure that its input did not cause."""

    def faults(self) -> Iterator[str]:
        """Yield the fault of a device that no machine has, also before a run that computes nothing."""
        if not _DEVICE.fullmatch(self.device):
            yield f"device must be auto, cpu, cuda or cuda:N, got {self.device[:80]!r}"


@config_section
class RegistryConfig:
    """Where a finished student is logged, and the rules by which it becomes the champion, see docs/promotion.md."""

    experiment: str = "dfkd"
    """MLflow experiment of the runs."""
    model_name: str = "dfkd-student"
    """Name of the registered model: letters, digits, spaces, `.`, `_` and `-`."""
    enforce_rules: bool = True
    """Whether a student that breaks a rule is refused; `false` promotes every student, and still records the rules."""
    min_accuracy_share: Fraction = 0.9
    """Share of the teacher's accuracy that a champion must reach on labelled images."""
    min_agreement: Fraction = 0.75
    """Share of the evaluated images, real or synthetic, on which a champion must answer with the teacher's class."""
    margin: Annotated[float, Ge(-1), Le(1)] = 0.01
    """Accuracy, or agreement without labels, by which a student may be worse than the champion on the same images, as a
    fraction. A negative margin requires a gain; 1 allows any loss."""
    confidence: Annotated[float, Gt(0.5), Lt(1)] = 0.95
    """One-sided confidence with which the student must keep the margin: few images are little evidence."""
    max_ece: Fraction = 1.0
    """Largest expected calibration error on labelled images, as a fraction; 1 sets no limit."""
    max_latency_ms: NonNegative = 0.0
    """Largest time for one image in milliseconds on the machine that evaluates; 0 sets no limit."""
    max_size_kb: NonNegative = 0.0
    """Largest size of the student's weights in kB, 1000 bytes; 0 sets no limit."""

    def faults(self) -> Iterator[str]:
        """Yield the faults of names that MLflow would refuse, or could not find again, at the end of a run."""
        name = self.experiment
        if not name.strip() or not name.isprintable() or len(name) > _LONGEST_EXPERIMENT:
            yield f"experiment must be 1 to {_LONGEST_EXPERIMENT} printable characters, got {name[:80]!r}"
        if not _MODEL_NAME.fullmatch(self.model_name) or len(self.model_name) > _LONGEST_MODEL_NAME:
            yield (
                f"model_name must be 1 to {_LONGEST_MODEL_NAME} letters, digits, spaces, '.', '_' and '-', and begin "
                f"with a letter or a digit, got {self.model_name[:80]!r}"
            )


@config_section
class Params:
    """All settings of a run; the sections of `params.yaml`."""

    seed: NonNegativeInt = 0
    """Seed of all random draws."""
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
        """Labelled images that a built-in teacher is trained on; None if the teacher is from elsewhere."""
        if self.teacher.source.model:
            return None
        return replace(self.data, dataset=self.teacher.dataset or self.data.dataset, class_order=())

    def faults(self) -> Iterator[str]:
        """Yield where sections contradict each other. External teachers and data are checked when they are read."""
        training = self.training_data
        if training and not can_train(training.dataset):
            yield (
                f"teacher training needs a built-in data set or torchvision:NAME, got {training.dataset!r}: set "
                "teacher.dataset to one, or name a trained teacher (teacher.source.model)"
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
        # These assumptions do not affect whether an image size or a thinner start is possible.
        shape = {
            "in_channels": self.data.channels or (spec.in_channels if spec else 3),
            "image_size": self.data.image_size,
            "num_classes": spec.num_classes if spec else 10,
        }
        try:
            # Only shapes are needed: nothing is allocated or drawn.
            with torch.device("meta"):
                teacher = build_network(self.teacher.network, **shape)
                if not is_built_in_network(self.distillation.student):
                    return
                student = build_network(self.distillation.student, **shape)
            if self.distillation.start == "pruned":
                check_thinner(teacher, student)
        except DfkdError as error:
            yield str(error)
