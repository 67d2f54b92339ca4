"""Small tables and pictures about a run, written so that the same content gives the same bytes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfkd_core.digests import write_atomically

__all__ = ["write_confusion_picture", "write_csv", "write_image_grid"]

_BORDER_PX = 1
_ZOOM = 2
# Larger images are shown as they are.
_LARGEST_ZOOMED_PX = 64
# A picture of more classes names none, and is as large as one of few.
_MOST_NAMED_CLASSES = 120
_SIDE_WITHOUT_NAMES = 20


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


def write_confusion_picture(path: Path, confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> None:
    """Write a confusion matrix [true, predicted] as a PNG with each row's shares in per cent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    is_named = len(counts) <= _MOST_NAMED_CLASSES
    side = len(counts) if is_named else _SIDE_WITHOUT_NAMES
    figure = Figure(figsize=(2 + 0.6 * side, 1.5 + 0.55 * side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="student says", ylabel="true class")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if is_named:
        axes.set_xticks(range(len(counts)), class_names, rotation=45, ha="right")
        axes.set_yticks(range(len(counts)), class_names)
    if len(counts) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
