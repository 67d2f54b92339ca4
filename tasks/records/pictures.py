"""Pictures about a run, with titles, units and numbers of images; the same content is written as the same bytes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd_core.common.digests import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

__all__ = [
    "Confusion",
    "Sample",
    "scale_losses",
    "shown_names",
    "write_accuracy_picture",
    "write_confusion_picture",
    "write_curves",
    "write_samples",
]

_FONT = "DejaVu Sans"
_MOST_LETTERS = 24
_PLAIN: dict[str, Any] = {"parse_math": False}

_IMAGE_PX = 96
_COLUMNS = 12
_GAP_PX = 12
_FRAME_PX = 3
_LINE_PX = 15
_REFINED, _DRAWN, _SAME, _OTHER, _INK = "#0b62c4", "#b0b0b0", "#1a1a1a", "#b00020", "#1a1a1a"

_MAX_MATRIX_CLASSES = 100
_MAX_WRITTEN_CLASSES = 20
_NUM_PAIRS = 30
_MOST_BARS = 40
_TEACHER, _STUDENT = "#5b6770", "#0b62c4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a transfer set, and what it is."""

    pixels: np.ndarray
    """uint8 [c, h, w]; three channels are RGB, of others the first is shown in grey."""
    target: int
    """Most likely class of its soft target."""
    answer: int
    """Class that the teacher gives."""
    confidence: float
    """The teacher's probability of this class, in [0, 1]."""
    is_refined: bool
    """Whether gradient steps changed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """The answers of one model."""

    title: str
    """Name of the model, and its figures."""
    counts: Sequence[Sequence[int]]
    """Number of images by class of the row and class of the answer."""


def write_samples(path: Path, samples: Sequence[Sample], class_names: Sequence[str], *, title: str) -> None:
    """Write images as a PNG, each with the class of its target and the teacher's answer below it.

    Args:
        path: File to write.
        samples: The images, at least one.
        class_names: Names of the classes.
        title: What they are a sample of.
    """
    from PIL import Image, ImageDraw

    rows = -(-len(samples) // _COLUMNS)
    cell, height = _IMAGE_PX + _GAP_PX, _IMAGE_PX + _GAP_PX + 2 * _LINE_PX
    header = 4 * _LINE_PX
    picture = Image.new("RGB", (_COLUMNS * cell + _GAP_PX, header + rows * height + _GAP_PX), "white")
    draw, names = ImageDraw.Draw(picture), shown_names(class_names)
    _write_header(draw, title)
    for place, sample in enumerate(samples):
        left, top = _GAP_PX + place % _COLUMNS * cell, header + place // _COLUMNS * height
        picture.paste(_enlarged(sample.pixels), (left, top))
        _frame(draw, left, top, is_refined=sample.is_refined)
        _caption(draw, left, top + _IMAGE_PX + 4, sample, names)
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_header(draw: ImageDraw, title: str) -> None:
    draw.text((_GAP_PX, 6), _legible(title), fill=_INK, font=_font(15))
    text = "below each image: class of its target; the teacher's answer (= same class, ≠ another) and its probability"
    draw.text((_GAP_PX, 6 + 1.5 * _LINE_PX), text, fill=_INK, font=_font(11))
    left = _GAP_PX + draw.textlength(text, font=_font(11)) + 2 * _GAP_PX
    for colour, label in ((_REFINED, "refined by gradient steps"), (_DRAWN, "as drawn")):
        draw.rectangle((left, 30, left + 10, 40), outline=colour, width=_FRAME_PX)
        draw.text((left + 16, 6 + 1.5 * _LINE_PX), label, fill=_INK, font=_font(11))
        left += 16 + draw.textlength(label, font=_font(11)) + 2 * _GAP_PX


def _enlarged(pixels: np.ndarray) -> Any:
    """Return an image in a square of the picture, its pixels as squares if it is small."""
    from PIL import Image

    channels, height, width = pixels.shape
    image = Image.fromarray(pixels.transpose(1, 2, 0) if channels == 3 else pixels[0]).convert("RGB")
    factor = _IMAGE_PX / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX)


def _frame(draw: ImageDraw, left: int, top: int, *, is_refined: bool) -> None:
    box = (left - _FRAME_PX, top - _FRAME_PX, left + _IMAGE_PX + _FRAME_PX - 1, top + _IMAGE_PX + _FRAME_PX - 1)
    draw.rectangle(box, outline=_REFINED if is_refined else _DRAWN, width=_FRAME_PX if is_refined else 1)


def _caption(draw: ImageDraw, left: int, top: int, sample: Sample, names: Sequence[str]) -> None:
    is_same = sample.target == sample.answer
    share = f"{100 * sample.confidence:.0f} %"
    draw.text((left, top), _cut(draw, names[sample.target]), fill=_INK, font=_font(12))
    text = f"= {share}" if is_same else f"≠ {_cut(draw, names[sample.answer], beside=f'≠ , {share}')}, {share}"
    draw.text((left, top + _LINE_PX), text, fill=_SAME if is_same else _OTHER, font=_font(12))


def _cut(draw: ImageDraw, text: str, *, beside: str = "") -> str:
    """Return a text that fits below an image."""
    room = _IMAGE_PX - draw.textlength(beside, font=_font(12))
    while draw.textlength(text, font=_font(12)) > room and len(text) > 2:
        text = f"{text[:-2]}…"
    return text


@cache
def _font(size: int) -> FreeTypeFont:
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont(_FONT), size)


def shown_names(names: Sequence[str]) -> list[str]:
    """Return names of classes for a picture: short, on one line, and `class 7` in place of letters without a glyph."""
    lines = [" ".join(name.split()) for name in names]
    texts = [text if text and _legible(text) == text else f"class {number}" for number, text in enumerate(lines)]
    return [text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…" for text in texts]


def _legible(text: str) -> str:
    """Return a text with a question mark in place of letters without a glyph, of which matplotlib would warn."""
    return "".join(letter if ord(letter) in _glyphs() else "?" for letter in text)


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


def write_confusion_picture(
    path: Path, models: Sequence[Confusion], class_names: Sequence[str], *, title: str, rows: str = "true class"
) -> None:
    """Write the confusion matrices of one or two models as a PNG, with each row's shares in per cent.

    For more than 100 classes the picture shows the pairs that the last model confuses most, since a matrix would be
    illegible.

    Args:
        path: File to write.
        models: The models, from left to right; at least one.
        class_names: Names of the classes.
        title: The data, and the number of images.
        rows: Meaning of the rows.
    """
    names = shown_names(class_names)
    shares = [_row_shares(model.counts) for model in models]
    if len(names) > _MAX_MATRIX_CLASSES:
        figure = _draw_pairs(models, shares, names, rows)
    else:
        figure = _draw_matrices(models, shares, names, rows)
    figure.suptitle(_legible(title), fontsize=11, **_PLAIN)
    _save(figure, path)


def _row_shares(counts: Sequence[Sequence[int]]) -> np.ndarray:
    found = np.asarray(counts, dtype=float)
    shares: np.ndarray = found / np.maximum(found.sum(1, keepdims=True), 1)
    return shares


def _draw_matrices(
    models: Sequence[Confusion], shares: Sequence[np.ndarray], names: Sequence[str], rows: str
) -> Figure:
    is_written = len(names) <= _MAX_WRITTEN_CLASSES
    side, font = (0.5, 9) if is_written else (0.15, 6)
    figure = _new_figure(max(5.0, (1.8 + side * len(names)) * len(models)), max(3.5, 2 + side * len(names)))
    for number, (model, found) in enumerate(zip(models, shares, strict=True), start=1):
        axes = figure.add_subplot(1, len(models), number, xlabel="model's answer", ylabel=rows)
        axes.set_title(_legible(model.title), fontsize=10, **_PLAIN)
        image = axes.imshow(100 * found, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(
            range(len(names)), names, rotation=45 if is_written else 90, ha="right", fontsize=font, **_PLAIN
        )
        axes.set_yticks(range(len(names)), names, fontsize=font, **_PLAIN)
        if is_written:
            _write_shares(axes, found)
    figure.colorbar(image, ax=figure.axes, label=f"share of the {rows} in %", shrink=0.8)
    return figure


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)


def _draw_pairs(models: Sequence[Confusion], shares: Sequence[np.ndarray], names: Sequence[str], rows: str) -> Figure:
    confused = [found * (1 - np.eye(len(found))) for found in shares]
    worst = np.argsort(-confused[-1], axis=None, kind="stable")[:_NUM_PAIRS]
    pairs = [tuple(map(int, np.unravel_index(cell, confused[-1].shape))) for cell in worst]
    figure = _new_figure(9, 1.5 + 0.25 * len(pairs) * len(models))
    axes = figure.add_subplot(xlabel=f"share of the {rows} in %")
    axes.set_title(
        f"the {len(pairs)} pairs of {len(names)} classes that the student confuses most",
        fontsize=10,
    )
    bars = {model.title: [100 * found[pair] for pair in pairs] for model, found in zip(models, confused, strict=True)}
    _draw_bars(axes, bars, [f"{names[row]} → {names[column]}" for row, column in pairs])
    return figure


def write_accuracy_picture(
    path: Path,
    class_names: Sequence[str],
    teacher: Sequence[float | None],
    student: Sequence[float | None],
    *,
    title: str,
) -> None:
    """Write each class's accuracies as a PNG, first the classes on which the student loses most; at most 40.

    Args:
        path: File to write.
        class_names: Names of the classes; without any the picture states that there are no labels.
        teacher: Shares of each class's images; None for a class without images.
        student: Likewise.
        title: The data, and the number of images.
    """
    names = shown_names(class_names)
    found = [
        (name, 100 * first, 100 * second)
        for name, first, second in zip(names, teacher, student, strict=True)
        if first is not None and second is not None
    ]
    found.sort(key=lambda row: row[2] - row[1])
    shown = found[:_MOST_BARS]
    if not shown:
        _write_note(path, title, "no labelled images, so no accuracy is known")
        return
    figure = _new_figure(9, 1.5 + 0.35 * len(shown))
    axes = figure.add_subplot(xlabel="accuracy in % of the class's images", xlim=(0, 100))
    more = f", the {len(shown)} of {len(found)} with the largest loss" if len(shown) < len(found) else ""
    axes.set_title(f"accuracy per class, sorted by the student's loss{more}", fontsize=10)
    columns = {"teacher": [row[1] for row in shown], "student": [row[2] for row in shown]}
    _draw_bars(axes, columns, [f"{name} ({second - first:+.1f})" for name, first, second in shown])
    figure.suptitle(_legible(title), fontsize=11, **_PLAIN)
    _save(figure, path)


def _draw_bars(axes: Axes, columns: dict[str, list[float]], labels: Sequence[str]) -> None:
    """Draw one bar per column and label, the first label on top; the last column is the student's."""
    thickness = 0.8 / len(columns)
    for number, (name, values) in enumerate(columns.items()):
        places = np.arange(len(values)) + (number - (len(columns) - 1) / 2) * thickness
        colour = _STUDENT if number == len(columns) - 1 else _TEACHER
        axes.barh(places, values, height=thickness, color=colour, label=name)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, **_PLAIN)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.figure.legend(loc="outside lower center", ncols=len(columns), fontsize=8)


def write_curves(path: Path, epochs: Path, *, title: str) -> None:
    """Write the loss of a training with all its terms, and its learning rate, as a PNG.

    Args:
        path: File to write.
        epochs: Table of `write_history`; without epochs the picture states it.
        title: The model, and the number of images.
    """
    with epochs.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        _write_note(path, title, "loaded, not trained here, so there are no epochs")
        return
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    numbers, rates = columns.pop("epoch"), columns.pop("learning_rate")
    figure = _new_figure(8, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for name, values, style in _curves(columns):
        upper.plot(
            numbers, values, label=f"{name}, at the end {values[-1]:.4g}", marker="." if len(rows) < 30 else "", **style
        )
    scale_losses(upper, columns)
    upper.set_ylabel("mean over the epoch's steps")
    upper.grid(alpha=0.3)
    upper.legend(fontsize=8)
    lower.plot(numbers, rates, color=_TEACHER)
    lower.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    lower.grid(alpha=0.3)
    figure.suptitle(_legible(title), fontsize=11, **_PLAIN)
    _save(figure, path)


def _curves(columns: dict[str, list[float]]) -> Iterator[tuple[str, list[float], dict[str, Any]]]:
    """Yield the loss and, if it has several, its terms: name, values and style."""
    terms = {name: values for name, values in columns.items() if name != "loss"}
    if len(terms) == 1:
        yield f"loss ({next(iter(terms))})", columns["loss"], {"linewidth": 2, "color": _INK}
        return
    yield "loss, the sum of its terms" if terms else "loss", columns["loss"], {"linewidth": 2, "color": _INK}
    yield from ((f"term {name}", values, {}) for name, values in terms.items())


def scale_losses(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    """Use a logarithmic axis if all values allow it, with plain numbers; its usual labels would be formulas."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if all(value > 0 for values in losses.values() for value in values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _write_note(path: Path, title: str, text: str) -> None:
    figure = _new_figure(6, 1.5)
    figure.suptitle(_legible(title), fontsize=11, **_PLAIN)
    figure.text(0.5, 0.35, text, ha="center")
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
