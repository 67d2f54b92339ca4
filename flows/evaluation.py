"""Stage 5: the student's figures."""

from __future__ import annotations

from prefect import flow

from dfkd_core.config import Params
from flows.running import FLOW_OPTIONS, memory_for, run_cached
from tasks.evaluation import make_evaluation, measure_models
from tasks.workspace import LATENCY, METRICS, REPORTS, STUDENT, TEACHER, place_file, reference, work_folder

__all__ = ["evaluate"]

_REPORTS = ("confusion.csv", "confusion.png", "per_class.csv")


@flow(name="evaluate", **FLOW_OPTIONS)
def evaluate(params: Params) -> str:
    """Evaluate teacher and student; write `metrics.json` and the tables in `reports/`."""
    teacher, student = reference(TEACHER), reference(STUDENT)
    inputs = {
        "teacher": teacher.sha256,
        "student": student.sha256,
        "data": params.data,
        "config": params.evaluation,
    }
    made = work_folder("evaluate", inputs) / "out"
    device = params.execution.device
    result = run_cached(
        make_evaluation,
        teacher,
        student,
        params.data,
        params.evaluation,
        folder=made.as_posix(),
        device=device,
        memory=memory_for(params.execution),
    )
    num_runs = params.evaluation.num_latency_runs
    measure_models(teacher, student, num_runs=num_runs, path=LATENCY.as_posix(), device=device)
    place_file(made / "metrics.json", METRICS)
    for name in _REPORTS:
        place_file(made / name, REPORTS / name)
    return f"student accuracy {result.numbers['accuracy']:.4f}, agreement {result.numbers['agreement']:.4f}"
