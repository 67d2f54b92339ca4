"""The charts, pictures and tables of a student's page, from its facts. What cannot be shown has a sentence instead.

k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dfkd_core.evaluation.reliability import Bin, reliability
from dfkd_tasks.records.forms import count, share
from dfkd_tasks.report.charts import (
    MOST_MATRIX_CLASSES,
    agreement_chart,
    class_chart,
    confidence_chart,
    confusion_chart,
    feature_chart,
    histogram_chart,
    loss_chart,
    reliability_chart,
)
from dfkd_tasks.report.counts import MOST_ROWS, class_losses, confusion, largest_pairs
from dfkd_tasks.report.drawing import Chart, printable
from dfkd_tasks.report.facts import StudentReport
from dfkd_tasks.report.pictures import Picture, disagreeing_pictures, pair_pictures, sample_pictures

__all__ = ["Section", "Table", "student_sections"]

_MOST_BINS = 25
_OLDER = "These results were made by an earlier version, which did not store it. Make them again with: dfkd run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table below the charts."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_open: bool = False
    """Whether it is shown at once, and not only when the reader opens it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


def student_sections(report: StudentReport) -> list[Section]:
    """Return the parts of a student's page, in their order."""
    return [
        _classes(report),
        _confusions(report),
        _calibration(report),
        _agreement(report),
        _disagreements(report),
        _transfer_set(report),
        _samples(report),
        _neighbours(report),
        _features(report),
        _training(report),
    ]


def _classes(report: StudentReport) -> Section:
    losses = class_losses(report.predictions, report.class_names)
    shown = losses[:MOST_ROWS]
    table = Table(
        caption="Share of right answers by class",
        head=("class", "images", "teacher", "student", "lost"),
        rows=tuple(
            (one.name, count(one.num_images), share(one.teacher), share(one.student), share(one.lost)) for one in shown
        ),
    )
    unseen = len(report.class_names) - len(losses)
    text = ["Without labels, the teacher's answers count as right."] if report.is_proxy else []
    text += [f"{unseen} of {len(report.class_names)} classes have no image here."] if unseen else []
    title = "Agreement lost by class" if report.is_proxy else "Accuracy lost by class"
    charts = (class_chart(losses, is_proxy=report.is_proxy),)
    return Section(id="classes", title=title, text=tuple(text), charts=charts, tables=(table,))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """Two classes of each image."""

    title: str
    rows: str
    columns: str
    first: Sequence[int]
    second: Sequence[int]


def _compared(report: StudentReport) -> Iterator[_Answers]:
    found = report.predictions
    if found.labels is not None:
        for model, answers in (("teacher", found.teacher), ("student", found.student)):
            yield _Answers(
                title=f"The {model}", rows="true classes", columns=f"{model}'s answers", first=found.labels,
                second=answers,
            )  # fmt: skip
    yield _Answers(
        title="Both models", rows="teacher's answers", columns="student's answers", first=found.teacher,
        second=found.student,
    )  # fmt: skip


def _confusions(report: StudentReport) -> Section:
    names, compared = report.class_names, list(_compared(report))
    has_matrices = len(names) <= MOST_MATRIX_CLASSES
    charts = [
        confusion_chart(
            confusion(found.first, found.second, len(names)), names, title=found.title, rows=found.rows,
            columns=found.columns,
        )
        for found in compared
        if has_matrices
    ]  # fmt: skip
    tables = [_pair_table(found, names, is_open=not has_matrices) for found in compared]
    both = zip(report.predictions.teacher, report.predictions.student)
    differ = sum(one != other for one, other in both)
    text = f"The two models answer differently on {count(differ)} of {count(len(report.predictions.student))} images."
    return Section(
        id="confusion", title="Mistakes of both models, and their differences", text=(text,), charts=tuple(charts),
        tables=tuple(tables),
    )  # fmt: skip


def _pair_table(found: _Answers, names: Sequence[str], *, is_open: bool) -> Table:
    pairs = largest_pairs(found.first, found.second, names)
    return Table(
        caption=f"{found.title}: the {len(pairs)} most frequent confusions",
        head=(found.rows, found.columns, "images", "share of the row"),
        rows=tuple((one.row, one.column, count(one.num_images), share(one.share)) for one in pairs),
        is_open=is_open,
    )


def _calibration(report: StudentReport) -> Section:
    title, found = "Calibration", report.predictions
    if found.labels is None:
        text = "Calibration needs labelled images, and none were given."
        return Section(id="calibration", title=title, text=(text,))
    if not found.student_confidence:
        return Section(id="calibration", title=title, text=(f"The confidence of each answer is missing. {_OLDER}",))
    errors = {row.name: row for row in report.rows}.get("calibration error")
    charts = []
    for model in ("teacher", "student"):
        bins = reliability(
            getattr(found, f"{model}_confidence"),
            [answer == label for answer, label in zip(getattr(found, model), found.labels)],
            num_bins=min(report.num_bins, _MOST_BINS),
        )
        error = getattr(errors, model).text if errors else "not known"
        charts.append(reliability_chart(bins, model=model, error=error))
    text = "A model is calibrated if it is right as often as it is sure: then its bars end on the dashed line."
    return Section(id="calibration", title=title, text=(text,), charts=tuple(charts))


def _agreement(report: StudentReport) -> Section:
    title, found = "Agreement by the teacher's confidence", report.predictions
    if not found.teacher_confidence:
        return Section(id="agreement", title=title, text=(f"The confidence of each answer is missing. {_OLDER}",))
    same = [one == other for one, other in zip(found.teacher, found.student)]
    bins = reliability(found.teacher_confidence, same, num_bins=min(report.num_bins, _MOST_BINS))
    text = "Disagreements at high confidence are the costly ones."
    return Section(
        id="agreement", title=title, text=(text,), charts=(agreement_chart(bins),), tables=(_bin_table(bins),)
    )


def _bin_table(bins: Sequence[Bin]) -> Table:
    return Table(
        caption="Agreement by the teacher's confidence",
        head=("confidence", "images", "same answer"),
        rows=tuple((f"{one.lower:.0%} to {one.upper:.0%}", count(one.num_images), share(one.share)) for one in bins),
    )


def _disagreements(report: StudentReport) -> Section:
    title, found = "Worst disagreements", report.disagreements
    if found is None:
        return Section(id="disagreements", title=title, text=(f"The images are missing. {_OLDER}",))
    if not len(found.index):
        return Section(id="disagreements", title=title, text=("The models give the same answer on every image.",))
    kind = "synthetic images that no model was trained on" if report.is_proxy else f"real images of {report.data}"
    text = f"The {len(found.index)} {kind} on which both models are surest of different answers."
    pictures = disagreeing_pictures(found, report.predictions, report.class_names)
    return Section(id="disagreements", title=title, text=(text,), pictures=tuple(pictures))


def _without_set(id_: str, title: str) -> Section:
    return Section(id=id_, title=title, text=(f"Facts about the transfer set are missing. {_OLDER}",))


def _transfer_set(report: StudentReport) -> Section:
    title, found = "Transfer set", report.transfer_set
    if found is None:
        return _without_set("transfer-set", title)
    answers, targets = found.class_counts.numpy(), found.target_counts.numpy()
    charts = (
        histogram_chart(answers, targets, report.class_names),
        confidence_chart(found.confidence_counts.numpy()),
    )
    return Section(
        id="transfer-set", title=title, text=("The synthesized images that the student learned from.",), charts=charts
    )


def _samples(report: StudentReport) -> Section:
    title, found = "Samples of the transfer set", report.transfer_set
    if found is None:
        return _without_set("samples", title)
    refined = int(found.sample_is_refined.sum())
    text = f"{len(found.sample_index)} images spread over the set; {refined} of them were refined by gradient steps."
    return Section(id="samples", title=title, text=(text,), pictures=tuple(sample_pictures(found, report.class_names)))


def _neighbours(report: StudentReport) -> Section:
    title, found = "Nearest neighbours in the transfer set", report.transfer_set
    if found is None:
        return _without_set("neighbours", title)
    text = (
        f"The most similar pairs among {count(found.num_compared)} images. Their distance is the root mean square "
        f"difference of pixels from 0 to 1. {count(found.num_duplicates)} pairs are closer than 0.01."
    )
    return Section(id="neighbours", title=title, text=(text,), pictures=tuple(pair_pictures(found)))


def _features(report: StudentReport) -> Section:
    title, found = "Features: the model, and what the images reach", report.transfer_set
    if found is None:
        return _without_set("features", title)
    if not len(found.drawn_axes):
        text = "The method has no model of the features, or the teacher does not expose its layers."
        return Section(id="features", title=title, text=(text,))
    chart = feature_chart(found.drawn_axes.numpy(), found.image_axes.numpy(), report.real_axes)
    text = "The method draws features from N(mu, Sigma). Images of the transfer set should cover the same region" + (
        ", and so should real ones." if len(report.real_axes) else "."
    )
    return Section(id="features", title=title, text=(text,), charts=(chart,))


def _training(report: StudentReport) -> Section:
    charts = [loss_chart(history, model=model) for model, history in report.histories.items() if history.epochs]
    missing = [model for model, history in report.histories.items() if not history.epochs]
    text = tuple(f"The {printable(model)} was not trained here." for model in missing)
    return Section(id="training", title="Training", text=text, charts=tuple(charts))
