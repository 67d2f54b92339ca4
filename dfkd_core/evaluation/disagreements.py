"""The images on which teacher and student differ most, for people to look at.

m images, c channels, h height, w width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfkd_core.common.rows import Rows
from dfkd_core.common.shown_images import shrunk
from dfkd_core.common.tensor_files import read_results, write_tensors
from dfkd_core.errors import DataError
from dfkd_core.evaluation.predictions import Predictions

__all__ = ["Disagreements", "find_disagreements", "read_disagreements", "worst_places", "write_disagreements"]

_MOST_IMAGES = 24
_FORMS = {"images": "uint8 m c h w", "index": "int64 m"}


@dataclass(frozen=True, slots=True, eq=False)
class Disagreements:
    """Images on which the models give different classes, the worst first."""

    images: Tensor
    """uint8 [m, c, h, w], at most 24 images of at most 64 pixels per side."""
    index: Tensor
    """Their positions among the evaluated images, int64 [m]."""


def find_disagreements(predictions: Predictions, images: Rows) -> Disagreements:
    """Return the images with different classes for which the product of both models' confidences is largest.

    Args:
        predictions: Classes and confidences of an evaluation.
        images: Its images, uint8 [n, c, h, w].
    """
    worst = worst_places(predictions)[:_MOST_IMAGES]
    shown = images[worst] if len(worst) else torch.empty(0, *images.shape[1:], dtype=torch.uint8)
    return Disagreements(shrunk(shown), worst)


def worst_places(predictions: Predictions) -> Tensor:
    """Return the positions of all images with different classes, int64 [m], the surest pair of answers first.

    Args:
        predictions: Classes and confidences of an evaluation; without confidences, the images keep their order.
    """
    student, teacher = torch.tensor(predictions.student), torch.tensor(predictions.teacher)
    places = (student != teacher).nonzero()[:, 0]
    if not predictions.student_confidence:
        return places
    sure = torch.tensor(predictions.student_confidence).double() * torch.tensor(predictions.teacher_confidence).double()
    # A stable order of positions that rise, so equal products are in the order of the images.
    return places[sure[places].argsort(descending=True, stable=True)]


def write_disagreements(path: Path, disagreements: Disagreements) -> None:
    """Write disagreements as a safetensors file, whole or not at all; equal ones give equal bytes."""
    write_tensors(path, {"images": disagreements.images, "index": disagreements.index})


def read_disagreements(path: Path) -> Disagreements:
    """Read the file of `write_disagreements`.

    Raises:
        DataError: The file is missing or damaged.
    """
    return Disagreements(**read_results(path, _FORMS, missing="There are no disagreements", error=DataError))
