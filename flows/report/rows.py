"""The rows of teacher, student and champion, with the texts that `dfkd show` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.calibration import calibration_interval
from dfkd_core.evaluation.operations import multiply_adds
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.models.classifier import Classifier
from dfkd_flows.run.figures import joint_figure, share_interval
from dfkd_tasks.records.forms import between, count, kilobytes, milliseconds, nats, share
from dfkd_tasks.report.facts import UNKNOWN, FigureRow, Number

__all__ = ["Champion", "count_operations", "figure_rows"]

Figures = Mapping[str, float]
"""By dotted name, as in MLflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The version that the student is compared with."""

    heading: str
    figures: Figures
    predictions: Predictions | None = None
    operations: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    meaning: str
    figure: str
    """Name of the figure after that of the model."""
    form: Callable[[float], str]


_LATENCIES = (
    _Row("latency, 1 image", "median time of a forward pass", "batch_1_ms", milliseconds),
    _Row("latency, 64 images", "median time of a forward pass", "batch_64_ms", milliseconds),
)


def count_operations(load: Callable[[], Classifier]) -> int | None:
    """Return the multiply-adds of a network for one image, None if it cannot be loaded or they cannot be counted."""
    with suppress(DfkdError, RuntimeError, NotImplementedError):
        return multiply_adds(load())
    return None


def figure_rows(
    figures: Figures,
    predictions: Predictions,
    champion: Champion | None,
    *,
    num_bins: int,
    operations: Mapping[str, int | None],
) -> Iterator[FigureRow]:
    """Yield the rows of the comparison, most important first.

    Args:
        figures: Figures of teacher and student.
        predictions: Their answers.
        champion: The champion, None if there is none.
        num_bins: Bins of the calibration error.
        operations: Multiply-adds of `teacher` and `student`.
    """
    others = champion.figures if champion else {}
    yield from _shares(figures, others)
    yield FigureRow(
        name="calibration error",
        meaning="how far its confidence is from its share of right answers",
        teacher=_calibration(figures, "teacher", predictions, num_bins),
        student=_calibration(figures, "student", predictions, num_bins),
        champion=_calibration(others, "student", champion.predictions if champion else None, num_bins),
    )
    yield _row(
        _Row("KL to the teacher", "how far its probabilities are from the teacher's", "kl", nats), figures, others
    )
    yield _row(_Row("parameters", "trained numbers", "num_parameters", count), figures, others)
    yield _row(_Row("size", "of the file of the weights", "size_bytes", kilobytes), figures, others)
    counts = {**operations, "champion": champion.operations if champion else None}
    yield FigureRow(
        name="operations",
        meaning="multiply-adds for one image, counted",
        **{model: _number(value, count) for model, value in counts.items()},
    )
    for row in _LATENCIES:
        yield FigureRow(
            name=row.name,
            meaning=row.meaning,
            teacher=_number(figures.get(f"latency.teacher.{row.figure}"), row.form),
            student=_number(figures.get(f"latency.student.{row.figure}"), row.form),
            champion=_number(others.get(f"latency.student.{row.figure}"), row.form),
        )
    yield _compression("compression in size", "the teacher's size over its own", figures, others)
    yield _fewer_operations(counts)


def _shares(figures: Figures, others: Figures) -> Iterator[FigureRow]:
    if "student.accuracy" in figures:
        yield _share_row("accuracy", "share of images that are answered correctly", "accuracy", figures, others)
    is_proxy = "proxy.agreement" in figures
    name = "agreement (proxy)" if is_proxy else "agreement"
    yield _share_row(name, "share of images with the teacher's answer", "agreement", figures, others)


def _share_row(name: str, meaning: str, figure: str, figures: Figures, others: Figures) -> FigureRow:
    return FigureRow(
        name=name,
        meaning=meaning,
        teacher=_share(figures.get(f"teacher.{figure}"), figures),
        student=_share(joint_figure(figures, figure), figures),
        champion=_share(joint_figure(others, figure), others),
    )


def _share(value: float | None, figures: Figures) -> Number:
    if value is None:
        return UNKNOWN
    interval = share_interval(value, figures.get("num_images", 0))
    return Number(text=share(value), value=value, within=between(interval))


def _calibration(figures: Figures, model: str, found: Predictions | None, num_bins: int) -> Number:
    error = figures.get(f"{model}.ece")
    confidence: tuple[float, ...] = getattr(found, f"{model}_confidence", ())
    if error is None or found is None or found.labels is None or not confidence:
        return _number(error, share)
    correct = [answer == label for answer, label in zip(getattr(found, model), found.labels)]
    interval = calibration_interval(error, confidence, correct, num_bins=num_bins)
    return Number(text=share(error), value=error, within=between(interval))


def _row(row: _Row, figures: Figures, others: Figures) -> FigureRow:
    return FigureRow(
        name=row.name,
        meaning=row.meaning,
        teacher=_number(figures.get(f"teacher.{row.figure}"), row.form),
        student=_number(joint_figure(figures, row.figure), row.form),
        champion=_number(joint_figure(others, row.figure), row.form),
    )


def _compression(name: str, meaning: str, figures: Figures, others: Figures) -> FigureRow:
    def times(found: Figures) -> float | None:
        own, teachers = found.get("student.size_bytes"), found.get("teacher.size_bytes")
        return teachers / own if own and teachers else None

    return FigureRow(
        name=name, meaning=meaning, student=_number(times(figures), _times), champion=_number(times(others), _times)
    )


def _fewer_operations(counts: Mapping[str, int | None]) -> FigureRow:
    teachers = counts["teacher"]

    def times(model: str) -> Number:
        own = counts[model]
        return _number(teachers / own if own and teachers else None, _times)

    return FigureRow(
        name="compression in operations",
        meaning="the teacher's operations over its own",
        student=times("student"),
        champion=times("champion"),
    )


def _number(value: Any, form: Callable[[float], str]) -> Number:
    return UNKNOWN if value is None else Number(text=form(value), value=value)


def _times(value: float) -> str:
    return f"{value:.2f} times"
