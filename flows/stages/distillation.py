"""Stage 4: the student."""

from __future__ import annotations

from prefect import flow

from dfkd_core.models.storage import read_card
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.log import logged, note, show_run
from dfkd_flows.shown.names import student_label, teacher_label
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for, run_cached
from dfkd_tasks.caching.workspace import (
    StudentFiles,
    TeacherFiles,
    place_file,
    place_folder,
    reference,
    work_folder,
)
from dfkd_tasks.records.history import read_notes, read_start
from dfkd_tasks.records.pictures import write_curves
from dfkd_tasks.stages.distillation import make_student

__all__ = ["distill"]


@flow(name="distill", **FLOW_OPTIONS)
def distill(params: Params) -> str:
    """Distil the student and write it into its folder, see `StudentFiles`."""
    show_run(f"distill {student_label(params)}", params)
    shared, own = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    teacher, transfer_set = reference(shared.network), reference(shared.transfer_set)
    inputs = {
        "teacher": teacher.sha256,
        "transfer_set": transfer_set.sha256,
        "config": params.distillation,
        "seed": params.seed,
    }
    work = work_folder("distill", inputs)
    result = run_cached(
        make_student,
        teacher,
        transfer_set,
        params.distillation,
        seed=params.seed,
        folder=(work / "out").as_posix(),
        checkpoint=(work / "checkpoint.safetensors").as_posix(),
        compute=compute_for(params.execution),
    )
    place_folder(work / "out" / "model", own.network)
    place_file(work / "out" / "epochs.csv", own.reports / "epochs.csv")
    num_images = read_manifest(shared.transfer_set).num_images
    title = f"{student_label(params)}, distilled on {num_images:,} images of {teacher_label(params)}"
    write_curves(own.reports / "epochs.png", own.reports / "epochs.csv", title=title)
    for text in read_notes(own.network):
        note(text)
    network, start = read_card(own.network).network, read_start(own.network)
    return logged(f"{network} from a {start} start, last loss {result.numbers['loss']:.4f}")
