"""Features on the first two principal axes of their model N(mean, Sigma), for a picture of what images reach.

n images, d units of the modelled layer, r rank of the covariance.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfkd_core.common.pixels import load_batch
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.common.shown_images import spread_positions
from dfkd_core.common.tensor_files import read_results, write_tensors
from dfkd_core.errors import DataError
from dfkd_core.models.access import Inspectable
from dfkd_core.statistics.features import FeatureStatistics

__all__ = [
    "NO_AXES",
    "drawn_on_axes",
    "images_on_axes",
    "principal_axes",
    "read_real_axes",
    "write_real_axes",
]

NO_AXES = torch.empty(0, 2)
"""Coordinates [0, 2] of no images."""

_MOST_POINTS = 500
_BATCH = 100


def principal_axes(statistics: FeatureStatistics) -> Tensor:
    """Return the two directions of the largest variance, float64 [d, 2]; an axis without variance is 0.

    The largest entry of an axis is positive.
    """
    factor = statistics.factor.double()
    vectors, values, _ = torch.linalg.svd(factor, full_matrices=False)
    axes = torch.zeros(len(factor), 2, dtype=torch.float64)
    for number in range(min(2, len(values))):
        if values[number] > 0:
            axis = vectors[:, number]
            axes[:, number] = axis * axis[axis.abs().argmax()].sign()
    return axes


def drawn_on_axes(statistics: FeatureStatistics, *, seed: int) -> Tensor:
    """Return coordinates float32 [500, 2] of features that are drawn from the model, relative to its mean.

    Args:
        statistics: The model.
        seed: Seed of the draw.
    """
    return _coordinates(statistics.sample(_MOST_POINTS, derive_generator(seed, "axes")), statistics)


@torch.no_grad()
def images_on_axes(teacher: Inspectable, statistics: FeatureStatistics, images: Rows) -> Tensor:
    """Return coordinates float32 [min(n, 500), 2] of the features of images, spread over the set, on the CPU.

    Args:
        teacher: Computes the features.
        statistics: Their model.
        images: uint8 [n, c, h, w].
    """
    positions = spread_positions(len(images), _MOST_POINTS)
    features = [
        teacher.forward_with_features(part)[1].float().cpu()
        for batch in torch.split(positions, _BATCH)
        for part in teacher.passes.split(load_batch(images, batch, teacher.device))
    ]
    return _coordinates(torch.cat(features), statistics) if features else NO_AXES


def _coordinates(features: Tensor, statistics: FeatureStatistics) -> Tensor:
    return ((features.double() - statistics.mean.double()) @ principal_axes(statistics)).float()


def write_real_axes(path: Path, axes: Tensor) -> None:
    """Write coordinates float32 [n, 2] of labelled images as a safetensors file, whole or not at all."""
    write_tensors(path, {"real_axes": axes})


def read_real_axes(path: Path) -> Tensor:
    """Read the file of `write_real_axes`: float32 [n, 2]; no rows without labelled images.

    Raises:
        DataError: The file is missing or damaged.
    """
    missing = "There are no features of labelled images"
    return read_results(path, {"real_axes": "float32 n 2"}, missing=missing, error=DataError)["real_axes"]
