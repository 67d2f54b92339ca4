"""Stage 1: a trained teacher."""

from __future__ import annotations

from prefect import flow

from dfkd_core.config import Params
from flows.running import FLOW_OPTIONS, run_cached
from tasks.teacher import make_teacher
from tasks.workspace import REPORTS, TEACHER, place_file, place_folder, work_folder

__all__ = ["teacher"]


@flow(name="teacher", **FLOW_OPTIONS)
def teacher(params: Params) -> str:
    """Train the teacher and put it into `artifacts/teacher`."""
    data = params.training_data
    assert data is not None
    inputs = {"data": data, "config": params.teacher, "seed": params.seed}
    made = work_folder("teacher", inputs) / "out"
    device = params.execution.device
    result = run_cached(make_teacher, data, params.teacher, seed=params.seed, folder=made.as_posix(), device=device)
    place_folder(made / "model", TEACHER)
    place_file(made / "epochs.csv", REPORTS / "teacher_epochs.csv")
    return f"{params.teacher.network} on {data.dataset}, last loss {result.numbers['loss']:.4f}"
