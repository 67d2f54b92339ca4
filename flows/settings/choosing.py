"""The teacher or the student that a command works with, and how a printed command names it."""

from __future__ import annotations

from dfkd_flows.settings.members import DEFAULT
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import PARAMS_FILE
from dfkd_flows.settings.yaml_text import read_yaml

__all__ = ["choose_teacher", "student_option", "teacher_argument"]


def choose_teacher(teacher: str | None, params: Params) -> tuple[Params, str]:
    """Return the parameters for a command on one teacher, and its name in the project, empty for one from elsewhere.

    Args:
        teacher: Value of `--teacher`: a name in the project comes before a path or an architecture of the same name;
            None is the only teacher.
        params: The project's parameters.

    Raises:
        ConfigError: It is None, and there are several teachers.
    """
    if teacher is None or teacher in params.teachers:
        name = params.the_teacher(teacher, "--teacher NAME")
        return params.for_teacher(name), name
    return (params.for_teacher(*params.teachers) if len(params.teachers) == 1 else params), ""


def student_option(params: Params) -> str:
    """Return the option, after a blank, that a printed command needs for a student; mostly none for the only one.

    Args:
        params: Parameters of the student, see `Params.for_student`.
    """
    return _needed(f" --student {params.student_name}", params.student_name, "students")


def teacher_argument(params: Params) -> str:
    """Return the argument, after a blank, that a printed command needs for a teacher; mostly none for the only one.

    Args:
        params: Parameters of the teacher or its student, see `Params.for_teacher`.
    """
    return _needed(f" {params.teacher_name}", params.teacher_name, "teachers")


def _needed(words: str, name: str, group: str) -> str:
    # The parameters of one student do not know the others, and a printed command is used in the project's folder.
    members = (read_yaml(PARAMS_FILE) or {}).get(group) if PARAMS_FILE.is_file() else None
    return "" if name == DEFAULT and len(members or ()) < 2 else words
