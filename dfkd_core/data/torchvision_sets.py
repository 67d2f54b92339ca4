"""The classification sets of torchvision.datasets, by name.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dfkd_core.common.class_names import distinct_names
from dfkd_core.data.pictures import picture_pixels
from dfkd_core.data.user_images import RawImages, check_labels
from dfkd_core.downloads import download_timeout
from dfkd_core.errors import DataError

__all__ = ["open_torchvision"]

_SPLITS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val")}
"""Names that classes use for the two splits; the first that a class accepts is used."""
_UNKNOWN_SPLIT = "Unknown value"
_LABELS = ("targets", "labels", "_labels")


def open_torchvision(name: str, root: Path, split: Literal["train", "test"]) -> RawImages:
    """Open one split of a data set of torchvision, which checks the files or downloads them.

    The search covers `root` in torchvision's layout, then the folder `name` below it. If the files are in neither, they
    are downloaded into that folder.

    Args:
        name: Class in torchvision.datasets whose constructor takes `root`, `download`, and `train` or `split`.
        root: Data folder.
        split: Split; for a class without a `test` split, `test` is the one called `val`.

    Raises:
        DataError: There is no such class, its files were not found and cannot be downloaded, or its labels are not one
            class per image.
    """
    made = _construct(name, _find_class(name), root, split)
    if not len(made):
        raise DataError(f"torchvision:{name} has no images in its {split} split. Choose another data set")

    def read(positions: list[int]) -> Iterator[Tensor]:
        return (_image(made[position][0], name) for position in positions)

    labels = check_labels(_labels(made, name), f"torchvision:{name}")
    # ImageNet has two classes named crane.
    names = distinct_names([_class_name(item) for item in getattr(made, "classes", None) or ()])
    # Some classes list more or fewer names than labels.
    return RawImages(read=read, labels=labels, class_names=names if int(labels.max()) < len(names) else ())


def _find_class(name: str) -> Any:
    # Imported here: torchvision takes two seconds to import, and no other source needs it.
    from dfkd_core.common.vision import datasets

    found = getattr(datasets, name, None)
    if name in datasets.__all__ and _is_fit(found):
        return found
    fit = [other for other in datasets.__all__ if _is_fit(getattr(datasets, other))]
    close = get_close_matches(name, fit, n=1)
    problem = "takes no root, download, and train or split" if name in datasets.__all__ else "does not exist"
    raise DataError(
        f"torchvision.datasets.{name} {problem}{f'; did you mean {close[0]}?' if close else '.'} Valid classes: "
        f"{', '.join(fit)}. For pictures in folders, ImageNet's too, set data.dataset to folder:PATH"
    )


def _is_fit(found: Any) -> bool:
    parameters = inspect.signature(found).parameters if inspect.isclass(found) else {}
    return {"root", "download"} <= parameters.keys() and bool({"train", "split"} & parameters.keys())


def _construct(name: str, made_by: Any, root: Path, split: Literal["train", "test"]) -> Any:
    parameters = inspect.signature(made_by).parameters
    choices = [{"train": split == "train"}] if "train" in parameters else [{"split": one} for one in _SPLITS[split]]
    failures = []
    for folder, download in ((root, False), (root / name, False), (root / name, True)):
        for choice in choices:
            try:
                with download_timeout():
                    return made_by(folder, download=download, **choice)
            # The classes raise many kinds of errors for a missing file, a failed download or an unknown split.
            except Exception as error:
                if not str(error).startswith(_UNKNOWN_SPLIT):
                    failures.append(f"{folder}{' (download)' if download else ''}: {' '.join(str(error).split())}")
    tried = "\n".join(f"  - {failure}" for failure in dict.fromkeys(failures))
    raise DataError(f"The {split} split of torchvision:{name} was not found and could not be loaded. Tried:\n{tried}")


def _labels(made: Any, name: str) -> Tensor:
    try:
        if torch.as_tensor(_label(made, 0)).dim() == 0:
            for attribute in _LABELS:
                found = getattr(made, attribute, None)
                if found is not None and len(found) == len(made) and torch.as_tensor(found).dim() == 1:
                    return torch.as_tensor(found)
            # Decodes every image: this class offers no other way to its labels.
            return torch.as_tensor([_label(made, position) for position in range(len(made))])
    except (TypeError, ValueError, RuntimeError):
        pass
    raise DataError(f"The labels of torchvision:{name} are not one class per image. Choose a classification data set")


def _label(made: Any, position: int) -> Any:
    item = made[position]
    if not isinstance(item[0], Tensor):
        # A picture that was opened and not decoded keeps its file open.
        item[0].close()
    return item[1]


def _image(image: Any, name: str) -> Tensor:
    if isinstance(image, Tensor):
        return image[None]
    with image:
        return picture_pixels(image, f"An image of torchvision:{name}")


def _class_name(item: Any) -> str:
    # Imagenette lists all names of a class; the first is the usual one.
    return item if isinstance(item, str) else str(item[0])
