"""Small tables and pictures about a run; the same content is written as the same bytes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd_core.common.digests import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_confusion_picture", "write_csv", "write_image_grid"]

_BORDER_PX = 1
_ZOOM = 2
# Larger images are not enlarged.
_LARGEST_ZOOMED_PX = 64
_MAX_MATRIX_CLASSES = 100
_MAX_WRITTEN_CLASSES = 20
_NUM_PAIRS = 30


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header."""
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_image_grid(path: Path, images: np.ndarray, *, columns: int) -> None:
    """Write uint8 images [n, c, h, w] row by row as one PNG; one channel is grey, three are RGB."""
    from PIL import Image

    num_images, channels, height, width = images.shape
    rows = -(-num_images // columns)
    cell_height, cell_width = height + _BORDER_PX, width + _BORDER_PX
    canvas = np.full((rows * cell_height + _BORDER_PX, columns * cell_width + _BORDER_PX, 3), 255, np.uint8)
    for position, image in enumerate(images):
        top = position // columns * cell_height + _BORDER_PX
        left = position % columns * cell_width + _BORDER_PX
        pixels = image.transpose(1, 2, 0)
        canvas[top : top + height, left : left + width] = pixels if channels == 3 else pixels[:, :, :1]
    picture = Image.fromarray(canvas)
    if max(height, width) <= _LARGEST_ZOOMED_PX:
        picture = picture.resize((picture.width * _ZOOM, picture.height * _ZOOM), Image.Resampling.NEAREST)
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def write_confusion_picture(
    path: Path, confusion: Sequence[Sequence[int]], class_names: Sequence[str], *, rows: str = "true class"
) -> None:
    """Write a confusion matrix as a PNG with each row's shares in per cent.

    For more than 100 classes the picture shows the most confused pairs, since a matrix would be illegible.

    Args:
        path: File to write.
        confusion: Counts by class of the row and class of the student's answer.
        class_names: Names of the classes.
        rows: Meaning of the rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = (_draw_matrix if len(counts) <= _MAX_MATRIX_CLASSES else _draw_pairs)(shares, class_names, rows)
    FigureCanvasAgg(figure)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _draw_matrix(shares: np.ndarray, class_names: Sequence[str], rows: str) -> Figure:
    from matplotlib.figure import Figure

    written = len(shares) <= _MAX_WRITTEN_CLASSES
    width, height, font = (0.6, 0.55, 10) if written else (0.2, 0.2, 7)
    size = (2 + width * len(shares), 1.5 + height * len(shares))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel="student's answer", ylabel=rows)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(shares)), class_names, rotation=45 if written else 90, ha="right", fontsize=font)
    axes.set_yticks(range(len(shares)), class_names, fontsize=font)
    if written:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def _draw_pairs(shares: np.ndarray, class_names: Sequence[str], rows: str) -> Figure:
    from matplotlib.figure import Figure

    confused = shares * (1 - np.eye(len(shares)))
    worst = np.argsort(confused, axis=None, kind="stable")[::-1][:_NUM_PAIRS]
    pairs = [tuple(map(int, np.unravel_index(cell, confused.shape))) for cell in worst]
    figure = Figure(figsize=(9, 1 + 0.25 * len(pairs)), layout="constrained")
    title = f"the {len(pairs)} pairs of {len(shares)} classes that are confused most"
    axes = figure.add_subplot(xlabel=f"share in per cent of: {rows}", title=title)
    axes.barh(range(len(pairs)), [100 * confused[pair] for pair in pairs])
    labels = [f"{class_names[row]} → {class_names[column]}" for row, column in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=8)
    axes.invert_yaxis()
    return figure
