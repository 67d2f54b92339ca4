"""Compare the student with its teacher on the real test images, or on synthetic ones if there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from dfkd_core.common.compute import Compute, settled
from dfkd_core.common.digests import write_json
from dfkd_core.data.datasets import DataConfig
from dfkd_core.data.naming import data_label
from dfkd_core.evaluation.comparison import EvaluationConfig, EvaluationReport, evaluate
from dfkd_core.evaluation.disagreements import find_disagreements, write_disagreements
from dfkd_core.evaluation.labelled_images import EvaluationData, load_evaluation_data
from dfkd_core.evaluation.latency import measure_latency
from dfkd_core.evaluation.predictions import write_predictions
from dfkd_core.evaluation.proxy import held_out_images
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.axes import NO_AXES, images_on_axes, write_real_axes
from dfkd_core.statistics.features import load_statistics
from dfkd_tasks.caching.policy import cached
from dfkd_tasks.caching.stored_models import load_allowed_model, load_allowed_teacher
from dfkd_tasks.caching.workspace import (
    DISAGREEMENTS_FILE,
    PREDICTIONS_FILE,
    REAL_AXES_FILE,
    Artifact,
    clear_folder,
    reference,
)
from dfkd_tasks.records.history import read_notes
from dfkd_tasks.records.pictures import Confusion, write_accuracy_picture, write_confusion_picture
from dfkd_tasks.records.progress import report
from dfkd_tasks.records.tables import write_csv
from dfkd_tasks.records.timing import timed

__all__ = ["make_evaluation", "measure_models"]


@task(name="evaluate student", **cached("evaluate", "compute"))
def make_evaluation(
    teacher: Artifact,
    student: Artifact,
    data: DataConfig,
    config: EvaluationConfig,
    *,
    statistics: Artifact | None = None,
    data_digest: str = "",
    folder: str,
    compute: Compute,
) -> Artifact:
    """Evaluate on the test images, or on held-out synthetic ones if there are none.

    Write `metrics.json`, tables, pictures, predictions, the worst disagreements, features of labelled images on two
    axes and remarks on the images into `folder`. `statistics` are those of the features, None without them.
    `data_digest` is the digest of the user's own files, which distinguishes results of different files with the same
    name.
    """
    with timed("evaluate"):
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        images = load_evaluation_data(data, loaded.card)
        held_out = held_out_images(loaded.card.image_shape, config.num_held_out_images)
        found = evaluate(
            _load(student),
            loaded,
            data=images,
            held_out=None if images else held_out,
            config=config,
            # An order that the user set or that follows from names is more reliable than a confusion matrix.
            check_order=images is not None and images.order == "as is",
            on_progress=report,
        )
        out = clear_folder(Path(folder))
        (out / "notes.txt").write_text("; ".join(images.notes if images else ()), encoding="utf-8")
        write_predictions(out / PREDICTIONS_FILE, found.predictions)
        worst = find_disagreements(found.predictions, images.images if images else held_out)
        write_disagreements(out / DISAGREEMENTS_FILE, worst)
        write_real_axes(out / REAL_AXES_FILE, _real_axes(loaded, images, statistics))
        names = images.class_names if images else loaded.card.class_labels
        _write_tables(out, found, names)
        _write_pictures(out, found, names, data.dataset)
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


def _real_axes(teacher: Teacher, images: EvaluationData | None, statistics: Artifact | None) -> Tensor:
    if images is None or statistics is None:
        return NO_AXES
    return images_on_axes(teacher, load_statistics(Path(statistics.path)), images.images)


def _write_tables(folder: Path, found: EvaluationReport, class_names: Sequence[str]) -> None:
    """Write the tables; without labels they have no rows."""
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


def _write_pictures(folder: Path, found: EvaluationReport, class_names: Sequence[str], dataset: str) -> None:
    """Write the pictures; without labels, the first one is of the two models' answers."""
    teacher, student = found.teacher.scores, found.student.scores
    confusion, accuracies = folder / "confusion.png", folder / "per_class.png"
    if teacher is None or student is None:
        title = f"{found.num_images:,} synthetic images (proxy: no real images are known)"
        answers = Confusion(title=f"student: agreement {found.agreement:.2%}", counts=found.answers)
        write_confusion_picture(confusion, [answers], class_names, title=title, rows="teacher's answer")
        write_accuracy_picture(accuracies, (), (), (), title=title)
        return
    title = f"{data_label(dataset)}: {found.num_images:,} labelled images"
    both = [
        Confusion(title=f"{name}: accuracy {scores.accuracy:.2%}", counts=scores.confusion)
        for name, scores in (("teacher", teacher), ("student", student))
    ]
    write_confusion_picture(confusion, both, class_names, title=title)
    shares = (teacher.per_class_accuracy, student.per_class_accuracy)
    write_accuracy_picture(accuracies, class_names, *shares, title=title)
