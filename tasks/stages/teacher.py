"""Train the teacher of a run, or load one from elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.common.compute import Compute, settled
from dfkd_core.data.datasets import DataConfig, load_dataset
from dfkd_core.errors import TeacherError
from dfkd_core.models.storage import save_model
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig
from dfkd_core.teachers.training import TeacherConfig, train_teacher
from dfkd_tasks.caching.policy import cached
from dfkd_tasks.caching.source_files import teacher_digest
from dfkd_tasks.caching.trust import trusted_factories
from dfkd_tasks.caching.workspace import Artifact, clear_folder, reference
from dfkd_tasks.mlflow_store.registry import local_source
from dfkd_tasks.records.history import write_history
from dfkd_tasks.records.progress import report
from dfkd_tasks.records.timing import timed

__all__ = ["NOTES_FILE", "make_teacher", "take_teacher"]

NOTES_FILE = "teacher.txt"
"""File with the detected properties of a teacher from elsewhere."""


@task(name="train teacher", **cached("teacher", "compute"))
def make_teacher(data: DataConfig, config: TeacherConfig, *, seed: int, folder: str, compute: Compute) -> Artifact:
    """Train on the labelled images and write `model/` and `epochs.csv` into `folder`."""
    with timed("teacher"):
        images = load_dataset(data, "train")
        on = settled(compute)
        result = train_teacher(config, images, seed=seed, device=on.device, prefetch=on.prefetch, on_progress=report)
    out = clear_folder(Path(folder))
    save_model(out / "model", result.classifier)
    write_history(out / "epochs.csv", result.history)
    return reference(out, {"loss": result.history[-1].loss})


# Not cached: the content of a file does not follow from its path, and DVC runs the stage only if something has changed.
@task(name="take teacher", cache_policy=NO_CACHE)
def take_teacher(source: SourceConfig, layer: str, image_size_hint: int, *, folder: str) -> Artifact:
    """Load and check a teacher from elsewhere; write `model/`, notes and a table without epochs into `folder`."""
    out = clear_folder(Path(folder))
    with timed("teacher"), tempfile.TemporaryDirectory() as scratch:
        local = local_source(source, Path(scratch))
        found = teacher_digest(local)
        if source.sha256 and source.sha256 != found:
            raise TeacherError(
                f"The teacher's files have changed (digest {found[:12]}, noted was {source.sha256[:12]}). Use them as "
                "they are now with: dfkd run"
            )
        brought = bring_teacher(
            local,
            scratch=Path(scratch),
            layer=layer,
            image_size_hint=image_size_hint,
            trusted_factories=trusted_factories(Path(local.model)),
        )
        card = brought.classifier.card
        save_model(out / "model", brought.classifier)
    (out / NOTES_FILE).write_text("".join(f"{note}\n" for note in brought.notes), encoding="utf-8")
    write_history(out / "epochs.csv", ())
    return reference(out, {"num_classes": card.num_classes, "image_size": card.image_size})
