"""Stage 1: a trained teacher."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from dfkd_core.data.datasets import DataConfig
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.models.storage import read_card
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.log import logged, note, show_run
from dfkd_flows.shown.names import data_label, teacher_label
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for, run_cached
from dfkd_flows.stages.only_student import check_only_student
from dfkd_tasks.caching.trust import allow_factories
from dfkd_tasks.caching.workspace import TeacherFiles, place_file, place_folder, work_folder
from dfkd_tasks.records.pictures import write_curves
from dfkd_tasks.stages.teacher import NOTES_FILE, make_teacher, take_teacher

__all__ = ["teacher"]


@flow(name="teacher", **FLOW_OPTIONS)
def teacher(params: Params) -> str:
    """Train the teacher or load an external one, and write it into its folder, see `TeacherFiles`."""
    show_run(f"teacher {teacher_label(params)}", params)
    data = params.training_data
    inputs = {"data": data or params.data, "config": params.teacher, "seed": params.seed}
    made = work_folder("teacher", inputs) / "out"
    summary = _take(params, made.as_posix()) if data is None else _train(data, params, made.as_posix())
    files = TeacherFiles(params.teacher_name)
    place_folder(made / "model", files.network)
    place_file(made / "epochs.csv", files.reports / "epochs.csv")
    place = f", trained on {data_label(data.dataset)}" if data else ""
    title = f"{teacher_label(params)}{place}"
    write_curves(files.reports / "epochs.png", files.reports / "epochs.csv", title=title)
    return logged(summary)


def _train(data: DataConfig, params: Params, folder: str) -> str:
    compute = compute_for(params.execution)
    result = run_cached(make_teacher, data, params.teacher, seed=params.seed, folder=folder, compute=compute)
    return f"{params.teacher.network} on {data.dataset}, last loss {result.numbers['loss']:.4f}"


def _take(params: Params, folder: str) -> str:
    source = params.teacher.source
    made = take_teacher(source, params.teacher.layer, params.data.image_size, folder=folder)
    for text in Path(folder, NOTES_FILE).read_text(encoding="utf-8").splitlines():
        note(text)
    card = read_card(Path(folder, "model"))
    # The copy may call what the source may.
    allow_factories(Path(folder, "model"), [card.network])
    # Checked here too, for runs that DVC starts itself.
    check_only_student(card, params)
    load_evaluation_data(params.data, card)
    size = made.numbers["image_size"]
    return f"{source.model}, {size:.0f} pixels, {made.numbers['num_classes']:.0f} classes"
