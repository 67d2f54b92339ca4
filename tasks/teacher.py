"""Trains the teacher of a run."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from dfkd_core.data import DataConfig, load_dataset
from dfkd_core.devices import resolve_device
from dfkd_core.models import save_model
from dfkd_core.training import TeacherConfig, train_teacher
from tasks.history import write_history
from tasks.options import cached
from tasks.reporting import report
from tasks.timing import timed
from tasks.workspace import Artifact, clear_folder, reference

__all__ = ["make_teacher"]


@task(name="train teacher", **cached("teacher", "device"))
def make_teacher(data: DataConfig, config: TeacherConfig, *, seed: int, folder: str, device: str) -> Artifact:
    """Train on the labelled images and write `model/` and `epochs.csv` into `folder`."""
    with timed("teacher"):
        images = load_dataset(data, "train")
        result = train_teacher(config, images, seed=seed, device=resolve_device(device), on_progress=report)
    out = clear_folder(Path(folder))
    save_model(out / "model", result.classifier)
    write_history(out / "epochs.csv", result.history)
    return reference(out, {"loss": result.history[-1].loss})
