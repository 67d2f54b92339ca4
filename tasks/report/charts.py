"""The charts of a page. Each takes facts and returns a drawing with a caption and a text in its place.

k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dfkd_core.evaluation.reliability import Bin
from dfkd_tasks.records.forms import count, share
from dfkd_tasks.records.pictures import scale_losses
from dfkd_tasks.report.counts import MOST_ROWS, ClassLoss
from dfkd_tasks.report.drawing import (
    GRID,
    MUTED,
    OTHER,
    STUDENT,
    TEACHER,
    TEXT,
    Chart,
    draw,
    plain_axes,
    printable,
    short,
)
from dfkd_tasks.report.facts import History, RunRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MOST_MATRIX_CLASSES",
    "agreement_chart",
    "class_chart",
    "confidence_chart",
    "confusion_chart",
    "feature_chart",
    "histogram_chart",
    "loss_chart",
    "reliability_chart",
    "runs_chart",
]

MOST_MATRIX_CLASSES = 30
"""Most classes of a confusion matrix; of more classes, pairs are listed."""
_MOST_WRITTEN_CLASSES = 12
_DARK_CELL = 0.5
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")
_COLOURS = (TEXT, TEACHER, STUDENT, OTHER, MUTED)


def class_chart(losses: Sequence[ClassLoss], *, is_proxy: bool) -> Chart:
    """Return the shares of right answers per class, that with the largest loss on top."""
    shown = losses[:MOST_ROWS]
    what = "answered like the teacher" if is_proxy else "answered correctly"

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x=f"images {what}, in %", grid="x")
        rows = range(len(shown))
        if not is_proxy:
            pairs = [(100 * one.student, 100 * one.teacher) for one in shown]
            axes.hlines(rows, *zip(*pairs), color=GRID, linewidth=3)
            # A ring, as the student may be at the same place.
            axes.plot(
                [teacher for _, teacher in pairs], rows, "o", markersize=11, markerfacecolor="none", color=TEACHER,
                label="teacher", linestyle="none",
            )  # fmt: skip
        axes.plot([100 * one.student for one in shown], rows, "D", color=STUDENT, label="student", linestyle="none")
        axes.set_yticks(rows, [short(one.name) for one in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.margins(x=0.05)
        figure.legend(loc="outside upper center", ncols=2)

    worst = shown[0]
    of = f"The {len(shown)} of {len(losses)} classes with the largest loss" if len(losses) > len(shown) else "Classes"
    against = "" if is_proxy else f", the teacher {share(worst.teacher)}"
    return draw(
        paint,
        height=1.2 + 0.25 * len(shown),
        caption=f"{of}, sorted by the student's loss",
        alternative=f"Chart of the share of images {what}, by class. The largest loss is on {printable(worst.name)}: "
        f"the student {share(worst.student)}{against}, of {count(worst.num_images)} images.",
    )


def confusion_chart(counts: np.ndarray, names: Sequence[str], *, title: str, rows: str, columns: str) -> Chart:
    """Return a confusion matrix with the shares of each row, or with the images if all rows together count.

    Args:
        counts: Images per class of the row and of the column, int [k, k].
        names: Names of the k classes.
        title: Shown below it.
        rows: Meaning of the rows.
        columns: Meaning of the columns.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    is_written = len(names) <= _MOST_WRITTEN_CLASSES
    labels = [short(name) for name in names]
    side = 0.34 if is_written else 0.21
    room = 0.9 + 0.07 * max(map(len, labels))

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x=columns, y=rows, grid="")
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors=GRID, linewidth=0.3)
        axes.set_aspect("equal")
        middles = np.arange(len(names)) + 0.5
        axes.set_xticks(middles, labels, rotation=90)
        axes.set_yticks(middles, labels)
        axes.invert_yaxis()
        if is_written:
            _write_shares(axes, shares)

    right = counts.trace() / max(counts.sum(), 1)
    return draw(
        paint,
        width=max(room + side * len(names), 3.4),
        height=room + side * len(names),
        caption=f"{title}: each row's shares in %" if is_written else f"{title}: a darker cell is a larger share",
        alternative=f"{title}: a matrix of {len(names)} classes; rows are the {rows}, columns the {columns}. "
        f"{share(right)} of the images are on the diagonal.",
    )


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(shares):
        if value >= 0.005:
            # Colours of their own: the cells are the same on dark pages.
            colour = "#ffffff" if value > _DARK_CELL else "#0a0a0a"
            axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)


def reliability_chart(bins: Sequence[Bin], *, model: str, error: str) -> Chart:
    """Return how often a model is right by its confidence.

    Args:
        bins: Its bins.
        model: Its name, `teacher` or `student`.
        error: Its calibration error as text.
    """

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x="confidence, in %", y="right answers, in %", title=f"The {model}", grid="both")
        axes.plot([0, 100], [0, 100], linestyle="--", color=TEXT, label="perfectly calibrated")
        _bars(axes, bins, TEACHER if model == "teacher" else STUDENT, "measured; the numbers are images")
        figure.legend(loc="outside upper center", ncols=2)

    return draw(
        paint,
        caption=f"The {model}'s right answers by its confidence; calibration error {error}",
        alternative=f"Reliability diagram of the {model}: {_in_words(bins, 'right')}. Calibration error {error}.",
    )


def agreement_chart(bins: Sequence[Bin]) -> Chart:
    """Return how often the student answers like the teacher, by the teacher's confidence."""

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x="the teacher's confidence, in %", y="same answer, in %", grid="both")
        _bars(axes, bins, STUDENT, "same answer")

    return draw(
        paint,
        caption="Agreement with the teacher by the teacher's confidence; the numbers are images",
        alternative=f"Chart of the agreement by the teacher's confidence: {_in_words(bins, 'the same')}.",
    )


def _bars(axes: Axes, bins: Sequence[Bin], colour: str, label: str) -> None:
    middles = [50 * (one.lower + one.upper) for one in bins]
    widths = [92 * (one.upper - one.lower) for one in bins]
    axes.bar(middles, [100 * one.share for one in bins], widths, color=colour, alpha=0.6, label=label)
    for middle, one in zip(middles, bins):
        axes.annotate(
            _brief(one.num_images), (middle, 100 * one.share), (0, 2), textcoords="offset points", ha="center",
            color=MUTED, fontsize=7,
        )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))


def _brief(number: int) -> str:
    """Return a number of images in at most four letters: 950, 12k."""
    return str(number) if number < 1000 else f"{number / 1000:.3g}k"


def _in_words(bins: Sequence[Bin], what: str) -> str:
    shown = [bins[0], bins[-1]] if len(bins) > 1 else [*bins]
    texts = [
        f"{share(one.share)} {what} of {count(one.num_images)} images at confidence {one.lower:.0%} to {one.upper:.0%}"
        for one in shown
    ]
    return "; ".join(texts) or "there are no images"


def histogram_chart(answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> Chart:
    """Return the classes of a transfer set.

    Args:
        answers: Images per class by the teacher's answers, int [k].
        targets: The same by the most likely class of the soft targets; zero without targets.
        names: Names of the k classes.
    """
    has_targets = bool(targets.sum())
    is_named = len(names) <= MOST_MATRIX_CLASSES
    order = np.arange(len(names)) if is_named else np.argsort(-answers, kind="stable")

    def paint(figure: Figure) -> None:
        x = "" if is_named else "classes, the most frequent first"
        axes = plain_axes(figure, x=x, y="images")
        shown = [(answers[order], TEACHER, "the teacher's answers")]
        shown += [(targets[order], OTHER, "soft targets")] if has_targets else []
        for place, (counts, colour, label) in enumerate(shown):
            if is_named:
                width = 0.8 / len(shown)
                middles = np.arange(len(names)) + (place - (len(shown) - 1) / 2) * width
                axes.bar(middles, counts, width, color=colour, label=label)
            else:
                axes.plot(counts, _LINES[place], color=colour, label=label)
        axes.axhline(answers.sum() / len(names), color=MUTED, linestyle="--", linewidth=1, label="even")
        if is_named:
            axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=90)
        figure.legend(loc="outside upper center", ncols=3)

    most, least = int(answers.argmax()), int(answers.argmin())
    return draw(
        paint,
        height=3.3,
        caption=f"Classes of the {count(answers.sum())} images of the transfer set",
        alternative=f"Chart of the images per class in the transfer set: from {count(answers[least])} for "
        f"{printable(names[least])} to {count(answers[most])} for {printable(names[most])}.",
    )


def confidence_chart(counts: np.ndarray) -> Chart:
    """Return the teacher's confidence in the images of a transfer set, from images in equal bins of [0, 1]."""

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x="the teacher's largest probability, in %", y="images")
        width = 100 / len(counts)
        axes.bar((np.arange(len(counts)) + 0.5) * width, counts, 0.92 * width, color=TEACHER)
        axes.set_xlim(0, 100)

    last = counts[-1] / max(counts.sum(), 1)
    return draw(
        paint,
        height=3.3,
        caption="The teacher's confidence in the transfer set",
        alternative=f"Chart of the teacher's largest probability in the transfer set: {share(last)} of the images are "
        f"above {1 - 1 / len(counts):.0%}.",
    )


def feature_chart(drawn: np.ndarray, images: np.ndarray, real: np.ndarray) -> Chart:
    """Return features on the first two axes of the feature model: drawn ones, those of images, and of real ones.

    Args:
        drawn: Sampled from the model, float [n, 2].
        images: Of images of the transfer set, float [m, 2].
        real: Of real images, float [l, 2]; may be empty.
    """
    clouds = [
        (drawn, "drawn from the model", MUTED, "."),
        (images, "transfer set", STUDENT, "x"),
        (real, "real images", OTHER, "+"),
    ]
    shown = [cloud for cloud in clouds if len(cloud[0])]

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x="first axis", y="second axis", grid="both")
        for points, label, colour, marker in shown:
            axes.plot(*points.T, marker, color=colour, label=label, markersize=4, linestyle="none")
        figure.legend(loc="outside upper center", ncols=3)

    return draw(
        paint,
        height=3.8,
        caption="Features on the two main axes of the feature model N(mu, Sigma)",
        alternative="Scatter chart of features on two axes. "
        + "; ".join(f"{label}: {_spread(points)}" for points, label, *_ in shown)
        + ".",
    )


def _spread(points: np.ndarray) -> str:
    means, stds = points.mean(0), points.std(0)
    return " and ".join(f"{mean:.3g} ± {std:.2g}" for mean, std in zip(means, stds))


def loss_chart(history: History, *, model: str) -> Chart:
    """Return the loss of a training and its terms by epoch."""

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x="epoch", y="loss", title=f"The {model}", grid="both")
        marker = "o" if len(history.epochs) == 1 else ""
        for place, (name, values) in enumerate(history.losses.items()):
            axes.plot(
                history.epochs, values, _LINES[place % len(_LINES)], marker=marker,
                color=_COLOURS[place % len(_COLOURS)], label=short(name),
            )  # fmt: skip
        scale_losses(axes, history.losses)
        figure.legend(loc="outside upper center", ncols=3)

    texts = [f"{printable(name)} from {values[0]:.4g} to {values[-1]:.4g}" for name, values in history.losses.items()]
    return draw(
        paint,
        caption=f"Loss of the {model} and its terms over {len(history.epochs)} epochs",
        alternative=f"Curves of the {model}'s training over {len(history.epochs)} epochs: {'; '.join(texts)}.",
    )


def runs_chart(rows: Sequence[RunRow], *, against: str, unit: str) -> Chart:
    """Return the accuracy of several runs against their seconds or their sizes.

    Args:
        rows: Runs with both figures, at least one.
        against: `seconds` or `size`.
        unit: Unit of the axis: the seconds as they are, a size in kB.
    """
    scale = 1000 if against == "size" else 1
    what = "time" if against == "seconds" else against
    points = [(row, (getattr(row, against).value or 0) / scale, 100 * (row.accuracy.value or 0)) for row in rows]

    def paint(figure: Figure) -> None:
        axes = plain_axes(figure, x=f"{what}, in {unit}", y="accuracy, in %", grid="both")
        for place, (row, x, y) in enumerate(points):
            low, high = row.interval or (y / 100, y / 100)
            # Open marks of different shapes: runs of one network have the same size.
            axes.errorbar(
                [x], [y], yerr=[[max(0.0, y - 100 * low)], [max(0.0, 100 * high - y)]], capsize=3, markersize=9,
                fmt=_MARKS[place % len(_MARKS)], markerfacecolor="none", color=_COLOURS[place % len(_COLOURS)],
                label=str(place),
            )  # fmt: skip
        axes.margins(0.15)
        legend = figure.legend(loc="outside upper center", ncols=2)
        # As a label, a name that begins with an underscore would be left out.
        for text, row in zip(legend.get_texts(), rows, strict=True):
            text.set_text(f"{short(row.name)}{' (proxy)' if row.is_proxy else ''}")

    best = max(points, key=lambda point: point[2])[0]
    return draw(
        paint,
        height=2.9 + 0.1 * len(points),
        caption=f"Accuracy against {what}, with intervals of 95 %",
        alternative=f"Chart of the accuracy of {len(points)} runs against {what}. The most accurate one is "
        f"{printable(best.name)} with {best.accuracy.text} at {getattr(best, against).text}.",
    )
