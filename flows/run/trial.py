"""A run with other parameters than those of params.yaml, which changes nothing in the project.

It works in a copy of the project. Its students are logged in MLflow with all figures, and are not registered: a
champion can always be made again from params.yaml.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prefect import get_run_logger

from dfkd_core.errors import ConfigError
from dfkd_flows.run.artefacts import show_trial, show_trial_run
from dfkd_flows.run.ready import check_ready
from dfkd_flows.session.display import say
from dfkd_flows.session.starter import starter
from dfkd_flows.settings.overrides import place
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.settling import planned, settle
from dfkd_flows.shown.names import student_label
from dfkd_flows.stages.names import last_stages
from dfkd_tasks.dvc_project.trial_copy import trial_copy
from dfkd_tasks.dvc_project.versioning import pull as dvc_pull
from dfkd_tasks.dvc_project.versioning import reproduce
from dfkd_tasks.mlflow_store.addresses import TRACKING, tracking_uri

__all__ = ["chosen_students", "run_trial", "trial_changes"]


def chosen_students(params: Params, teacher: str | None, students: Sequence[str]) -> list[str]:
    """Return the names of the students to make: those named, or else all of the teacher, or else all.

    Raises:
        ConfigError: There is no such teacher or student, or a student has another teacher.
    """
    if teacher is None:
        return list(students or params.students)
    own = params.for_teacher(teacher)
    if foreign := [name for name in students if params.teacher_of(params.the_student(name)) != teacher]:
        raise ConfigError(
            f"The teacher {teacher} has no student {' and no student '.join(foreign)}; it has: "
            f"{', '.join(own.students)}"
        )
    if not own.students:
        raise ConfigError(f"The teacher {teacher} has no student. Add one to params.yaml, then: dfkd deploy")
    return list(students or own.students)


def trial_changes(
    params: Params, students: Sequence[str], *, epochs: int | None = None, num_images: int | None = None
) -> list[str]:
    """Return changes in the form of `--set`, made where params.yaml has the settings of these students.

    Args:
        params: The project's parameters.
        students: Names of the students.
        epochs: Epochs of the distillation; None for no change.
        num_images: Images of the transfer set; None for no change.
    """
    wanted = {"distillation.epochs": epochs, "synthesis.num_images": num_images}
    changes = {
        place(path, params, student): value
        for path, value in wanted.items()
        if value is not None
        for student in students
    }
    return [f"{path}={value}" for path, value in changes.items()]


def run_trial(
    preset: str | None,
    overrides: Sequence[str],
    students: Sequence[str],
    *,
    pull: bool = False,
    on_logged: Callable[[Params, str], None],
) -> None:
    """Make students with other parameters in a copy of the project, and log them. Hold the project's lock.

    Call it within a flow.

    Args:
        preset: Preset that replaces the values of params.yaml first.
        overrides: Changes made after it, like `synthesis.num_images=2000`.
        students: Names of the students to make; all if there are none.
        pull: Fetch results from the DVC remote before anything is computed.
        on_logged: Called in the copy with each student's parameters and the id of its run.

    Raises:
        DfkdError: The parameters have a fault, or a stage fails.
    """
    if pull:
        dvc_pull()
    with _same_store(), trial_copy():
        with planned(preset, overrides, students=students) as plan:
            check_ready(plan.chosen)
            settle(plan)
        for change in plan.shown():
            say(f"  only for this run: {change}")
        with starter():
            reproduce(*last_stages(plan.chosen))
        again = _command(preset, overrides, () if plan.chosen is plan.params else students)
        made = [plan.chosen.for_student(name) for name in plan.students]
        run_ids = [_logged(own) for own in made]
        for own, run_id in zip(made, run_ids, strict=True):
            on_logged(own, run_id)
        models = [show_trial(own) for own in made]
    # The project knows the pages of `dfkd up`, and its copy does not.
    for own, model, run_id in zip(made, models, run_ids, strict=True):
        _report(student_label(own), run_id, again)
        if model:
            show_trial_run(own, model, run_id, [str(change) for change in plan.shown()], again)


def _logged(params: Params) -> str:
    """Log a student and return the id of its run. MLflow takes seconds to import, and most runs are no trials."""
    from dfkd_flows.run.publishing import log_only

    return log_only(params)


def _report(student: str, run_id: str, again: str) -> None:
    from dfkd_tasks.mlflow_store.publishing import page_of

    page = page_of(run_id)
    place = f"run {run_id}, {page}" if page else f"run {run_id}"
    get_run_logger().info("%s is logged in MLflow as %s. Keep it with: %s", student, place, again)


def _command(preset: str | None, overrides: Sequence[str], students: Sequence[str]) -> str:
    changes = [*(["--preset", preset] if preset else []), *(word for text in overrides for word in ("--set", text))]
    return shlex.join(["dfkd", "run", *students, *changes])


@contextmanager
def _same_store() -> Iterator[None]:
    """Let the copy of the project log into the project's MLflow, as it has none of its own."""
    before = os.environ.get(TRACKING)
    os.environ[TRACKING] = tracking_uri()
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRACKING]
