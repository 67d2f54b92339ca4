"""Short names of data sets, for pictures and lists."""

from __future__ import annotations

from pathlib import PurePosixPath

from dfkd_core.data.datasets import NO_DATA

__all__ = ["data_label"]


def data_label(dataset: str) -> str:
    """Return a short name of a data set: the last part of a path, without its suffix.

    Args:
        dataset: As in `data.dataset`.
    """
    if dataset == NO_DATA:
        return "no real images"
    kind, _, place = dataset.partition(":")
    return PurePosixPath(place).stem if kind in ("folder", "file") else place or kind
