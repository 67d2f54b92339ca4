"""Stage 2: the statistics of the teacher's features."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from dfkd_flows.settings.params import Params
from dfkd_flows.shown.log import logged, show_run
from dfkd_flows.shown.names import teacher_label
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for, run_cached
from dfkd_tasks.caching.workspace import Artifact, TeacherFiles, place_folder, reference, work_folder
from dfkd_tasks.stages.statistics import make_statistics

__all__ = ["estimate", "statistics"]


@flow(name="statistics", **FLOW_OPTIONS)
def statistics(params: Params) -> str:
    """Estimate the statistics and write them into their folder, see `TeacherFiles`."""
    show_run(f"statistics {teacher_label(params)}", params)
    files = TeacherFiles(params.teacher_name)
    made = estimate(params, files.network)
    place_folder(Path(made.path), files.statistics)
    return logged(f"{made.numbers['num_features']:.0f} features, from {params.statistics.source}")


def estimate(params: Params, teacher_folder: Path) -> Artifact:
    """Estimate the statistics of any teacher. Call it within a flow."""
    teacher = reference(teacher_folder)
    inputs = {"teacher": teacher.sha256, "config": params.statistics, "seed": params.seed}
    folder = work_folder("statistics", inputs) / "out"
    return run_cached(
        make_statistics,
        teacher,
        params.statistics,
        seed=params.seed,
        folder=folder.as_posix(),
        compute=compute_for(params.execution),
    )
