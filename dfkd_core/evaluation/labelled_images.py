"""The labelled images that evaluate a teacher and its student, with the teacher's image shape and classes.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dfkd_core.common.rows import Rows
from dfkd_core.data.datasets import NO_DATA, DataConfig, is_built_in, open_dataset
from dfkd_core.data.fitting import FittedImages, resize, resize_and_crop
from dfkd_core.data.user_images import RawImages
from dfkd_core.downloads import SYSTEM_FOLDER
from dfkd_core.errors import DataError
from dfkd_core.evaluation.class_order import describe_unknown, have_common_names, order_by_name
from dfkd_core.models.classifier import ModelCard

__all__ = ["EvaluationData", "load_evaluation_data"]

Order = Literal["as is", "by name", "as set"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationData:
    """Test images with the teacher's classes."""

    images: Rows
    """uint8 [n, c, h, w] of the teacher's shape, read when they are indexed."""
    labels: Tensor
    """int64 [n], classes of the teacher in [0, k)."""
    class_names: tuple[str, ...]
    """Names of the teacher's k classes; a class without a name has its number."""
    order: Order
    """How labels were mapped to classes: unchanged, by their names, or by `data.class_order`."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on the images."""

    def __len__(self) -> int:
        """Return the number of images n."""
        return len(self.images)


def load_evaluation_data(
    config: DataConfig, card: ModelCard, *, system_folder: Path = SYSTEM_FOLDER
) -> EvaluationData | None:
    """Open the test images for a teacher; None if there are none (`data.dataset: none`).

    Their size and channels are those of the card, not of `config`. Built-in data sets are resized as for training;
    others keep their aspect ratio and are cropped at the centre.

    Args:
        config: Data set, its place, and the order of its classes.
        card: Card of the teacher.
        system_folder: Folder with Debian's data set packages.

    Raises:
        DataError: As for `open_dataset`, or the data set and the teacher differ in the number of classes.
    """
    if config.dataset == NO_DATA:
        return None
    raw = open_dataset(config, "test", system_folder=system_folder)
    order, how = _class_order(raw, config, card)
    fit = resize if is_built_in(config.dataset) else resize_and_crop
    return EvaluationData(
        images=FittedImages(raw.read, len(raw.labels), card.image_shape, fit),
        labels=torch.tensor(order)[raw.labels],
        class_names=_names(raw.class_names, order, card),
        order=how,
        notes=(*raw.notes, *_subset_note(order, how, card)),
    )


def _subset_note(order: Sequence[int], how: Order, card: ModelCard) -> Iterator[str]:
    if how == "by name" and len(order) < card.num_classes:
        yield f"the images have {len(order)} of the teacher's {card.num_classes} classes, by their names"


def _class_order(raw: RawImages, config: DataConfig, card: ModelCard) -> tuple[Sequence[int], Order]:
    """Return the teacher's class of each label and how it was found."""
    if config.class_order:
        return _order_as_set(raw, config.class_order, card), "as set"
    by_name = order_by_name(raw.class_names, card.class_names)
    if by_name:
        return by_name, "as is" if by_name == tuple(range(card.num_classes)) else "by name"
    if config.dataset.startswith("folder:") and card.class_names:
        _check_folder_names(raw.class_names, card)
    low, high, k = int(raw.labels.min()), int(raw.labels.max()), card.num_classes
    if raw.class_names and len(raw.class_names) != k:
        raise DataError(
            f"{config.dataset} has {len(raw.class_names)} classes, but the teacher has {k}. Correct data.dataset, or "
            "set data.class_order to the teacher's class of each label"
        )
    if (low, high) == (1, k):
        listed = ",".join(map(str, range(k))) if k <= 10 else f"0,1,...,{k - 1}"
        raise DataError(
            f"The labels in {config.dataset} range from 1 to {k}, but the teacher's {k} classes are counted from 0. "
            f"Subtract 1 from the labels, or set data.class_order: [-1,{listed}]"
        )
    if high >= k:
        raise DataError(
            f"The labels in {config.dataset} go up to {high}, but the teacher has {k} classes, 0 to {k - 1}. "
            "Correct data.dataset"
        )
    return range(k), "as is"


def _check_folder_names(names: Sequence[str], card: ModelCard) -> None:
    """Refuse folders that are not named like the teacher's classes; the order of their names means nothing.

    As many folders as classes, all with other names, are taken in order: they can be numbers in place of words.
    """
    if len(names) == card.num_classes and not have_common_names(names, card.class_names):
        return
    unknown = describe_unknown(names, card.class_names)
    if unknown:
        raise DataError(
            f"The teacher has no class with the name of these folders: {unknown}. Rename or remove them, or set "
            "data.class_order to the teacher's class of each folder, in the order of the folders' names"
        )


def _order_as_set(raw: RawImages, order: tuple[int, ...], card: ModelCard) -> tuple[int, ...]:
    num_labels = len(raw.class_names) or int(raw.labels.max()) + 1
    if len(order) < num_labels or (raw.class_names and len(order) > num_labels):
        raise DataError(f"data.class_order has {len(order)} entries for {num_labels} labels. Set one per label")
    if max(order) >= card.num_classes:
        raise DataError(
            f"data.class_order has class {max(order)}, but the teacher has {card.num_classes}, 0 to "
            f"{card.num_classes - 1}"
        )
    nowhere = [label for label in sorted(set(raw.labels.tolist())) if order[label] == -1]
    if nowhere:
        raise DataError(f"data.class_order is -1 for labels that images have: {', '.join(map(str, nowhere[:10]))}")
    return order


def _names(data_names: Sequence[str], order: Sequence[int], card: ModelCard) -> tuple[str, ...]:
    if card.class_names:
        return card.class_names
    names = [str(number) for number in range(card.num_classes)]
    for name, number in zip(data_names, order):
        if number >= 0:
            names[number] = name
    return tuple(names)
