"""What looks wrong about a run, each as a sentence that names the fault, the figure and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.synthesis.guards import balance_note
from dfkd_core.transfer_set.manifest import Manifest
from dfkd_core.transfer_set.summary import SetSummary
from dfkd_tasks.records.forms import count, share

__all__ = ["suspicions"]

_MANY_DUPLICATES = 1
_LARGE_SHARE = 0.5
_CERTAIN_MEAN = 0.99
_FEW_IMAGES = 1000
_WEAK = 2
_MOST_NAMES = 5


def suspicions(
    metrics: Mapping[str, Any],
    predictions: Predictions,
    manifest: Manifest,
    summary: SetSummary | None,
    names: Sequence[str],
) -> Iterator[str]:
    """Yield what looks wrong.

    Args:
        metrics: The student's figures, with notes on its training.
        predictions: Answers of both models.
        manifest: Manifest of the transfer set.
        summary: Facts about the transfer set; None in results of an earlier version.
        names: Names of the k classes.
    """
    yield from _of_training(metrics)
    yield from _of_set(manifest, summary, names)
    yield from _of_answers(predictions, names)
    yield from _of_evaluation(metrics, len(predictions.student), len(names))


def _of_training(metrics: Mapping[str, Any]) -> Iterator[str]:
    for note in metrics.get("notes", []):
        yield f"The student did not start or train as set: {note}"


def _of_set(manifest: Manifest, summary: SetSummary | None, names: Sequence[str]) -> Iterator[str]:
    counts = manifest.class_histogram
    if sum(map(bool, counts)) == 1 < len(counts):
        yield f"The teacher gives every image of the transfer set the class {names[int(np.argmax(counts))]}."
    elif note := balance_note(counts, method=manifest.method, method_config=manifest.method_config):
        yield f"The classes of the transfer set are uneven: {note}."
    if manifest.mean_confidence > _CERTAIN_MEAN:
        yield (
            f"The targets are saturated: the teacher's mean confidence in the transfer set is "
            f"{share(manifest.mean_confidence)}, so its answers carry little more than the class. Use fewer iterations "
            "or a higher temperature."
        )
    if summary and summary.num_duplicates >= _MANY_DUPLICATES:
        yield (
            f"The transfer set has near duplicates: {count(summary.num_duplicates)} pairs among "
            f"{count(summary.num_compared)} images differ by less than 0.01. Use another prior or another seed."
        )


def _of_answers(predictions: Predictions, names: Sequence[str]) -> Iterator[str]:
    for model, answers in (("teacher", predictions.teacher), ("student", predictions.student)):
        counts = np.bincount(answers, minlength=len(names))
        largest = int(counts.argmax())
        truths = np.bincount(predictions.labels, minlength=len(names)) if predictions.labels is not None else None
        expected = truths[largest] / len(answers) if truths is not None else 1 / len(names)
        found = counts[largest] / len(answers)
        if len(names) > 1 and found > max(_LARGE_SHARE, 2 * expected):
            yield f"The {model} gives {share(found)} of the evaluated images one class, {names[largest]}."
    missed = np.setdiff1d(np.unique(predictions.truth), np.unique(predictions.student))
    if len(missed):
        shown = ", ".join(names[k] for k in missed[:_MOST_NAMES])
        more = f" and {len(missed) - _MOST_NAMES} more" if len(missed) > _MOST_NAMES else ""
        yield f"The student never answers {len(missed)} of the classes that occur: {shown}{more}."


def _of_evaluation(metrics: Mapping[str, Any], num_images: int, num_classes: int) -> Iterator[str]:
    if num_images < _FEW_IMAGES:
        yield f"Only {count(num_images)} images were evaluated, so the intervals are wide."
    teacher = metrics["teacher"].get("accuracy")
    if teacher is not None and teacher < min(1.0, _WEAK / num_classes):
        yield (
            f"The teacher itself is right on only {share(teacher)}. Check that the images and their classes are those "
            "that it was trained for."
        )
    if "labels_ordered_by_name" in metrics:
        yield "The labels were put into the teacher's order by the names of the classes."
