"""Compares the student with its teacher on the real test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.data import DataConfig, load_dataset
from dfkd_core.devices import resolve_device
from dfkd_core.digests import write_json
from dfkd_core.evaluation import EvaluationConfig, EvaluationReport, evaluate, measure_latency
from dfkd_core.models import load_model
from dfkd_core.teacher import load_teacher
from tasks.options import cached
from tasks.reporting import report
from tasks.tables import write_confusion_picture, write_csv
from tasks.timing import timed
from tasks.workspace import Artifact, clear_folder, reference

__all__ = ["make_evaluation", "measure_models"]


@task(name="evaluate student", **cached("evaluate", "device", "memory"))
def make_evaluation(
    teacher: Artifact,
    student: Artifact,
    data: DataConfig,
    config: EvaluationConfig,
    *,
    folder: str,
    device: str,
    memory: int | None = None,
) -> Artifact:
    """Evaluate on the test images and write `metrics.json`, tables and the confusion matrix into `folder`."""
    with timed("evaluate"):
        loaded = load_teacher(Path(teacher.path), device=resolve_device(device), memory=memory)
        found = evaluate(
            load_model(Path(student.path)),
            loaded,
            data=load_dataset(data, "test"),
            config=config,
            on_progress=report,
        )
        out = clear_folder(Path(folder))
        _write_tables(out, found, loaded.card.class_names)
    write_json(out / "metrics.json", {**found.to_metrics(), "num_images": found.num_images})
    return reference(out, found.to_metrics()["student"])


@task(name="measure latency", cache_policy=NO_CACHE)
def measure_models(teacher: Artifact, student: Artifact, *, num_runs: int, path: str, device: str) -> None:
    """Time both models and write milliseconds to `path`; outside of the results, as times never repeat."""
    on = resolve_device(device)
    with timed("evaluate"):
        latency = {
            name: measure_latency(load_model(Path(model.path)), num_runs=num_runs, device=on)
            for name, model in (("teacher", teacher), ("student", student))
        }
    write_json(Path(path), {"device": str(on), "student_sha256": student.sha256, **latency})


def _write_tables(folder: Path, found: EvaluationReport, class_names: Sequence[str]) -> None:
    teacher, student = found.teacher.scores, found.student.scores
    assert teacher is not None
    assert student is not None
    confusion = student.confusion
    pairs = (
        (class_names[true], class_names[predicted])
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        for _ in range(count)
    )
    write_csv(folder / "confusion.csv", ["actual", "predicted"], pairs)
    per_class = zip(class_names, teacher.per_class_accuracy, student.per_class_accuracy, strict=True)
    write_csv(folder / "per_class.csv", ["class", "teacher_accuracy", "student_accuracy"], per_class)
    write_confusion_picture(folder / "confusion.png", confusion, class_names)
