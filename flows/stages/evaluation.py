"""Stage 5: the student's figures."""

from __future__ import annotations

import json

from prefect import flow

from dfkd_core.data.datasets import data_fingerprint
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.log import logged, show_run
from dfkd_flows.shown.names import student_label
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for, run_cached
from dfkd_tasks.caching.workspace import (
    DISAGREEMENTS_FILE,
    PREDICTIONS_FILE,
    REAL_AXES_FILE,
    StudentFiles,
    TeacherFiles,
    place_file,
    reference,
    work_folder,
)
from dfkd_tasks.stages.evaluation import make_evaluation, measure_models

__all__ = ["evaluate"]

_REPORTS = (
    "confusion.csv",
    "confusion.png",
    "per_class.csv",
    "per_class.png",
    PREDICTIONS_FILE,
    DISAGREEMENTS_FILE,
    REAL_AXES_FILE,
)


@flow(name="evaluate", **FLOW_OPTIONS)
def evaluate(params: Params) -> str:
    """Evaluate teacher and student; write the student's figures, reports and predictions, see `StudentFiles`."""
    show_run(f"evaluate {student_label(params)}", params)
    files = StudentFiles(params.student_name)
    shared = TeacherFiles(params.teacher_name)
    teacher, student, statistics = (reference(path) for path in (shared.network, files.network, shared.statistics))
    data_digest = data_fingerprint(params.data)
    inputs = {
        "teacher": teacher.sha256,
        "student": student.sha256,
        "statistics": statistics.sha256,
        "data": params.data,
        "data_digest": data_digest,
        "config": params.evaluation,
    }
    made = work_folder("evaluate", inputs) / "out"
    compute = compute_for(params.execution)
    result = run_cached(
        make_evaluation,
        teacher,
        student,
        params.data,
        params.evaluation,
        statistics=statistics,
        data_digest=data_digest,
        folder=made.as_posix(),
        compute=compute,
    )
    num_runs = params.evaluation.num_latency_runs
    measure_models(teacher, student, num_runs=num_runs, path=files.latency.as_posix(), compute=compute)
    place_file(made / "metrics.json", files.metrics)
    for name in _REPORTS:
        place_file(made / name, files.reports / name)
    agreement = f"agreement {result.numbers['agreement']:.4f}"
    if "accuracy" not in result.numbers:
        return logged(f"no real images: {agreement} on synthetic ones (proxy)")
    by_name = "labels_ordered_by_name" in json.loads(files.metrics.read_text(encoding="utf-8"))
    ordered = ", labels put in the teacher's order by their names" if by_name else ""
    summary = f"student accuracy {result.numbers['accuracy']:.4f}, {agreement}{ordered}"
    note = (made / "notes.txt").read_text(encoding="utf-8")
    return logged(f"{summary}; {note}" if note else summary)
