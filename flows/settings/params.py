"""The configuration of a run as one tree; each section is declared next to the code that uses it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from dfkd_core.data.datasets import DataConfig
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.errors import ConfigError
from dfkd_core.evaluation.comparison import EvaluationConfig
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, config_section
from dfkd_core.statistics.estimation import StatisticsConfig
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.teachers.training import TeacherConfig
from dfkd_flows.settings.conflicts import student_conflicts, teacher_conflicts, training_data
from dfkd_flows.settings.hints import closest
from dfkd_flows.settings.members import (
    DEFAULT,
    GROUPS,
    STUDENT_SECTIONS,
    TEACHER,
    TEACHER_SECTIONS,
    member_faults,
    merged,
)
from dfkd_flows.settings.model_names import model_name
from dfkd_flows.settings.notify import NotifyConfig

__all__ = ["ExecutionConfig", "Params", "RegistryConfig", "Sections"]

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
class Sections:
    """The settings of one student and its teacher."""

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
    notify: NotifyConfig = field(default_factory=NotifyConfig)


@config_section
class Params(Sections):
    """All settings of a project: the sections of `params.yaml`.

    The sections hold for all teachers and students. `for_student` returns those of one, with its changes.
    """

    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {DEFAULT: {}})
    """Named teachers, each with changes of the sections data, teacher, statistics and synthesis. Several students can
    share a teacher, its statistics and its transfer set."""
    students: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {DEFAULT: {TEACHER: DEFAULT}})
    """Named students, each with the name of its teacher and changes of the sections distillation, evaluation and
    registry."""

    @property
    def teacher_name(self) -> str:
        """Name of the only teacher; `for_teacher` and `for_student` return parameters with one."""
        (name,) = self.teachers
        return name

    @property
    def student_name(self) -> str:
        """Name of the only student; `for_student` returns parameters with one."""
        (name,) = self.students
        return name

    def for_teacher(self, name: str) -> Params:
        """Return the parameters of one teacher and its students: its changes are made in the sections.

        Raises:
            ConfigError: There is no such teacher.
        """
        self.the_teacher(name)
        students = {student: changes for student, changes in self.students.items() if changes[TEACHER] == name}
        return replace(self, **self._of_teacher(name), teachers={name: self.teachers[name]}, students=students)

    def for_student(self, name: str) -> Params:
        """Return the parameters of one student and its teacher: the changes of both are made in the sections.

        Raises:
            ConfigError: There is no such student.
        """
        teacher = self.teacher_of(self.the_student(name))
        return replace(
            self,
            **self._of_student(name),
            teachers={teacher: self.teachers[teacher]},
            students={name: self.students[name]},
        )

    def only(self, students: Collection[str]) -> Params:
        """Return the parameters with some of the students, and with their teachers; the sections stay as they are.

        Raises:
            ConfigError: There is no such student.
        """
        for name in students:
            self.the_student(name)
        teachers = {self.teacher_of(name) for name in students}
        return replace(
            self,
            teachers={name: changes for name, changes in self.teachers.items() if name in teachers},
            students={name: changes for name, changes in self.students.items() if name in students},
        )

    def the_teacher(self, name: str | None, choose: str = "NAME") -> str:
        """Return the name of a teacher, of the only one if `name` is None.

        Args:
            name: The name.
            choose: How the user chooses one, for the message.

        Raises:
            ConfigError: There is no such teacher, or there are several.
        """
        return _the_one("teacher", name, self.teachers, choose)

    def the_student(self, name: str | None, choose: str = "NAME") -> str:
        """Return the name of a student, of the only one if `name` is None.

        Args:
            name: The name.
            choose: How the user chooses one, for the message.

        Raises:
            ConfigError: There is no such student, or there are several.
        """
        return _the_one("student", name, self.students, choose)

    @property
    def training_data(self) -> DataConfig | None:
        """Labelled images that a built-in teacher is trained on; None if the teacher is from elsewhere."""
        return training_data(self.data, self.teacher)

    def teacher_of(self, student: str) -> str:
        """Return the name of a student's teacher."""
        return str(self.students[student][TEACHER])

    def _of_teacher(self, name: str) -> dict[str, Any]:
        """Return the sections that a teacher may change, with its changes."""
        changes = self.teachers[name]
        return {section: merged(getattr(self, section), changes.get(section, {})) for section in TEACHER_SECTIONS}

    def _of_student(self, name: str) -> dict[str, Any]:
        """Return the sections that a student and its teacher may change, with the changes of both."""
        changes = self.students[name]
        own = {section: merged(getattr(self, section), changes.get(section, {})) for section in STUDENT_SECTIONS}
        return self._of_teacher(self.teacher_of(name)) | own

    def model_name(self, teacher_digest: str) -> str:
        """Return the name of the registered model of the only student.

        Args:
            teacher_digest: Digest of the teacher's weights.
        """
        return self._model_name(self.student_name, self.registry, self.data, teacher_digest)

    def _model_name(self, student: str, registry: RegistryConfig, data: DataConfig, teacher_digest: str) -> str:
        return model_name(
            registry.model_name,
            teacher=self.teacher_of(student),
            student=student,
            changes=self.students[student],
            dataset=data.dataset,
            teacher_digest=teacher_digest,
        )

    def faults(self) -> Iterator[str]:
        """Yield faults of names, and where the settings of a teacher or a student contradict each other."""
        found = [fault for group in GROUPS for fault in member_faults(group, getattr(self, group), self)]
        found = found or list(self._without_teacher()) or list(self._conflicts())
        yield from found or self._shared_models()

    def _without_teacher(self) -> Iterator[str]:
        for name, changes in self.students.items():
            teacher = changes.get(TEACHER)
            if teacher is None:
                first = next(iter(self.teachers))
                yield f"students.{name} has no teacher. Give it one, for example {TEACHER}: {first}"
            elif teacher not in self.teachers:
                yield f"students.{name}.{TEACHER}: no teacher {teacher!r}; {closest(teacher, self.teachers)}"

    def _conflicts(self) -> Iterator[str]:
        faulty = set()
        for name in self.teachers:
            own = self._of_teacher(name)
            found = list(teacher_conflicts(own["data"], own["teacher"], own["synthesis"]))
            if found:
                faulty.add(name)
            yield from (_place(f"teachers.{name}", self.teachers) + fault for fault in found)
        for name in self.students:
            if self.teacher_of(name) in faulty:
                continue
            own = self._of_student(name)
            found = list(student_conflicts(own["data"], own["teacher"], own["distillation"]))
            yield from (_place(f"students.{name}", self.students) + fault for fault in found)

    def _shared_models(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for name in self.students:
            own = self._of_student(name)
            # The digest of a teacher is not known yet, and each has another.
            model = self._model_name(name, own["registry"], own["data"], f"={self.teacher_of(name)}")
            if (other := seen.setdefault(model, name)) != name:
                yield (
                    f"students {other} and {name} would share the registered model {model}. Give one a name of its "
                    f"own: students.{name}.registry.model_name"
                )


def _the_one(kind: str, name: str | None, members: Mapping[str, Any], choose: str) -> str:
    if not members:
        raise ConfigError(f"This project has no {kind}. Add one to params.yaml, under {kind}s")
    if name is None and len(members) > 1:
        raise ConfigError(f"This project has the {kind}s {', '.join(members)}. Choose one: {choose}")
    (only, *_) = members
    if name is not None and name not in members:
        raise ConfigError(f"No {kind} {name!r} in this project; {closest(name, members)}")
    return only if name is None else name


def _place(path: str, group: Mapping[str, Any]) -> str:
    """Return the start of a fault's line, empty for the only teacher or student."""
    return f"{path}: " if len(group) > 1 else ""
