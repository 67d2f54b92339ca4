"""Short names of teachers, students, data sets and runs. A path is never a name. Nothing here imports Prefect."""

from __future__ import annotations

from pathlib import PurePosixPath

from dfkd_core.data.datasets import NO_DATA
from dfkd_core.data.naming import data_label
from dfkd_core.distillation.config import AUTO
from dfkd_core.models.built_in import is_built_in
from dfkd_core.models.factories import split_width
from dfkd_flows.settings.members import DEFAULT
from dfkd_flows.settings.params import Params

__all__ = [
    "data_label",
    "network_label",
    "reevaluation_name",
    "result_name",
    "run_name",
    "run_tags",
    "student_label",
    "teacher_label",
]

_LONGEST = 40
_MOST_LISTED = 3
_PATHS = (".pt", ".pt2", ".pth", ".bin", ".onnx", ".safetensors", ".npz")


def run_name(params: Params) -> str:
    """Return the name of a run: `lenet5 on fashion_mnist -> lenet5@0.5`, or a short sum of several students."""
    origins = list(dict.fromkeys(_origin(params.for_teacher(name)) for name in params.teachers))
    origin = origins[0] if len(origins) == 1 else f"{len(origins)} teachers"
    return f"{origin} -> {_listed(params)}" if params.students else origin


def result_name(params: Params, network: str, start: str) -> str:
    """Return the name of a result: `digits lenet5→lenet5_half pruned`.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        network: Network of the student that was made, as in its card; `distillation.student` can be `auto`.
        start: Kind of its first weights, see `read_start`.
    """
    student = network_label(network) if params.student_name == DEFAULT else params.student_name
    return f"{_data(params)} {teacher_label(params)}→{student} {'random' if start == 'random' else 'pruned'}"


def reevaluation_name(params: Params, dataset: str | None = None) -> str:
    """Return the name of a re-evaluation: `reevaluate lenet5@0.5 on digits`, or a short sum of several students.

    Args:
        params: Parameters of the students whose champions are evaluated.
        dataset: Images as in `data.dataset`; None takes those of the parameters.
    """
    students = [params.for_student(name) for name in params.students]
    data = dict.fromkeys(_short(data_label(dataset or own.data.dataset)) for own in students)
    return f"reevaluate {_listed(params)} on {', '.join(data)}"


def _listed(params: Params) -> str:
    labels = [student_label(params.for_student(name)) for name in params.students]
    return ", ".join(labels) if len(labels) <= _MOST_LISTED else f"{len(labels)} students"


def run_tags(params: Params) -> list[str]:
    """Return `dfkd` and the names of teachers, students and data sets, each once."""
    teachers = [params.for_teacher(name) for name in params.teachers]
    students = [params.for_student(name) for name in params.students]
    labels = [*map(teacher_label, teachers), *map(student_label, students), *(_data(own) for own in teachers)]
    return list(dict.fromkeys(["dfkd", *labels]))


def teacher_label(params: Params) -> str:
    """Return the name of a teacher in the project; that of its network if it is called `default`.

    Args:
        params: Parameters of one teacher, see `Params.for_teacher`.
    """
    name = params.teacher_name
    return name if name != DEFAULT else network_label(params.teacher.source.model or params.teacher.network)


def student_label(params: Params) -> str:
    """Return the name of a student in the project; that of its network if it is called `default`.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    name, network = params.student_name, params.distillation.student
    if name != DEFAULT:
        return name
    teacher = params.teacher.source.model or params.teacher.network
    if network == AUTO and is_built_in(teacher):
        base, width = split_width(teacher)
        return f"{base}@{width / 2:g}"
    return network_label(network)


def network_label(source: str) -> str:
    """Return a short name for a network.

    Args:
        source: As in `teacher.source.model` and `distillation.student`: `timm:resnet18` is `resnet18`,
            `my_nets:make@0.5` is `make@0.5`, `models:/NAME@ALIAS` is `NAME`, and a path is its last part.
    """
    kind, colon, rest = source.partition(":")
    if kind == "models" and colon:
        label = rest.strip("/").partition("/")[0].partition("@")[0]
    elif kind == "runs" and colon:
        label = f"run {rest.strip('/').partition('/')[0][:8]}"
    elif "/" in source or source.endswith(_PATHS):
        path = PurePosixPath(source)
        label = path.stem if path.suffix in _PATHS else path.name
    else:
        label = rest if colon else source
    return _short(label or "network")


def _origin(params: Params) -> str:
    data = params.data.dataset
    return f"{teacher_label(params)} {'without real images' if data == NO_DATA else f'on {_data(params)}'}"


def _data(params: Params) -> str:
    return _short(data_label(params.data.dataset))


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 3]}..."
