"""Distil the student from the transfer set."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from dfkd_core.common.compute import Compute, settled
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill
from dfkd_core.models.storage import save_model
from dfkd_core.transfer_set.manifest import verify_transfer_set
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_tasks.caching.policy import cached
from dfkd_tasks.caching.stored_models import load_allowed_teacher
from dfkd_tasks.caching.workspace import Artifact, clear_folder, reference
from dfkd_tasks.records.history import write_history, write_start
from dfkd_tasks.records.progress import report
from dfkd_tasks.records.timing import timed

__all__ = ["make_student"]


@task(name="distill student", **cached("distill", "compute", "checkpoint"))
def make_student(
    teacher: Artifact,
    transfer_set: Artifact,
    config: DistillationConfig,
    *,
    seed: int,
    folder: str,
    checkpoint: str,
    compute: Compute,
) -> Artifact:
    """Distil from the stored transfer set and write `model/` and `epochs.csv` into `folder`."""
    compute = settled(compute)
    with timed("distill"):
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        verify_transfer_set(Path(transfer_set.path), loaded.digest)
        images = TransferSet(Path(transfer_set.path))
        result = distill(
            loaded,
            images,
            config,
            seed=seed,
            compute=compute,
            checkpoint=Path(checkpoint),
            on_progress=report,
        )
    out = clear_folder(Path(folder))
    save_model(out / "model", result.student)
    write_start(out / "model", result.start, result.notes)
    write_history(out / "epochs.csv", result.history)
    return reference(out, {"loss": result.history[-1].loss})
