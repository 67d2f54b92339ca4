"""Compare the student with its teacher on the real test images, or on synthetic ones if there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.common.compute import Compute, settled
from dfkd_core.common.digests import write_json
from dfkd_core.data.datasets import DataConfig
from dfkd_core.evaluation.comparison import EvaluationConfig, EvaluationReport, evaluate
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.evaluation.latency import measure_latency
from dfkd_core.evaluation.predictions import write_predictions
from dfkd_core.evaluation.proxy import held_out_images
from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_tasks.caching.policy import cached
from dfkd_tasks.caching.stored_models import load_allowed_model, load_allowed_teacher
from dfkd_tasks.caching.workspace import PREDICTIONS_FILE, Artifact, clear_folder, reference
from dfkd_tasks.records.history import read_notes
from dfkd_tasks.records.progress import report
from dfkd_tasks.records.tables import write_confusion_picture, write_csv
from dfkd_tasks.records.timing import timed

__all__ = ["make_evaluation", "measure_models"]


@task(name="evaluate student", **cached("evaluate", "compute"))
def make_evaluation(
    teacher: Artifact,
    student: Artifact,
    data: DataConfig,
    config: EvaluationConfig,
    *,
    data_digest: str = "",
    folder: str,
    compute: Compute,
) -> Artifact:
    """Evaluate on the test images, or on held-out synthetic ones if there are none.

    Write `metrics.json`, tables, the confusion matrix, predictions and remarks on the images into `folder`.
    `data_digest` is the digest of the user's own files, which distinguishes results of different files with the same
    name.
    """
    with timed("evaluate"):
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        images = load_evaluation_data(data, loaded.card)
        found = evaluate(
            _load(student),
            loaded,
            data=images,
            held_out=None if images else held_out_images(loaded.card.image_shape, config.num_held_out_images),
            config=config,
            # An order that the user set or that follows from names is more reliable than a confusion matrix.
            check_order=images is not None and images.order == "as is",
            on_progress=report,
        )
        out = clear_folder(Path(folder))
        (out / "notes.txt").write_text("; ".join(images.notes if images else ()), encoding="utf-8")
        write_predictions(out / PREDICTIONS_FILE, found.predictions)
        _write_tables(out, found, images.class_names if images else _class_names(loaded.card))
    metrics: dict[str, Any] = {**found.to_metrics(), "num_images": found.num_images}
    if images and images.order == "by name":
        metrics["labels_ordered_by_name"] = 1
    if notes := read_notes(Path(student.path)):
        metrics["notes"] = notes
    write_json(out / "metrics.json", metrics)
    return reference(out, found.to_metrics()["proxy" if found.proxy else "student"])


@task(name="measure latency", cache_policy=NO_CACHE)
def measure_models(teacher: Artifact, student: Artifact, *, num_runs: int, path: str, compute: Compute) -> None:
    """Time both models and write milliseconds to `path`; outside of the results, since times never repeat."""
    on = settled(compute).device
    with timed("evaluate"):
        latency = {
            name: measure_latency(_load(model), num_runs=num_runs, device=on)
            for name, model in (("teacher", teacher), ("student", student))
        }
    write_json(Path(path), {"device": str(on), "student_sha256": student.sha256, **latency})


def _load(model: Artifact) -> Classifier:
    return load_allowed_model(Path(model.path))


def _class_names(card: ModelCard) -> Sequence[str]:
    return card.class_names or [str(number) for number in range(card.num_classes)]


def _write_tables(folder: Path, found: EvaluationReport, class_names: Sequence[str]) -> None:
    """Write the tables; without labels they have no rows, and the picture is of the two models' answers."""
    teacher, student = found.teacher.scores, found.student.scores
    confusion = student.confusion if student else ()
    pairs = (
        (class_names[true], class_names[predicted])
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        for _ in range(count)
    )
    write_csv(folder / "confusion.csv", ["actual", "predicted"], pairs)
    shares = (scores.per_class_accuracy if scores else () for scores in (teacher, student))
    per_class = zip(class_names if student else (), *shares, strict=True)
    write_csv(folder / "per_class.csv", ["class", "teacher_accuracy", "student_accuracy"], per_class)
    rows = "true class" if student else "teacher's answer on synthetic images (proxy)"
    write_confusion_picture(folder / "confusion.png", confusion or found.answers, class_names, rows=rows)
