"""The teacher that a command works with: one of the project by its name, or one from elsewhere."""

from __future__ import annotations

from dfkd_flows.settings.params import Params

__all__ = ["choose_teacher"]


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
