"""Labelled data sets, only for training a teacher and for evaluation.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from dfkd_core.common.scikit_learn import shipped_file
from dfkd_core.common.seeding import derive_generator
from dfkd_core.data.fitting import FittedImages, resize, resize_and_crop
from dfkd_core.data.published_files import ensure_files, read_files, torchvision_class
from dfkd_core.data.torchvision_sets import open_torchvision
from dfkd_core.data.user_images import FILE_SUFFIXES, RawImages, fingerprint, open_file, open_folder
from dfkd_core.downloads import SYSTEM_FOLDER
from dfkd_core.errors import ConfigError, DataError
from dfkd_core.sections import config_section

__all__ = [
    "NO_DATA",
    "DataConfig",
    "DatasetSpec",
    "LabelledImages",
    "Split",
    "can_train",
    "data_fingerprint",
    "dataset_faults",
    "dataset_spec",
    "ensure_dataset",
    "is_built_in",
    "load_dataset",
    "open_dataset",
]

NO_DATA = "none"
"""Value of `dataset` for users without a data set."""

Split = Literal["train", "test"]

_DIGITS_TEST_FRACTION = 397 / 1797


@config_section
class DataConfig:
    """The labelled images on which all models are evaluated and a built-in teacher is trained.

    Example:
        >>> from dfkd_core import DataConfig
        >>> DataConfig(dataset="digits", image_size=16).channels
        0
        >>> DataConfig(dataset="none", class_order=(1, 0))
        Traceback (most recent call last):
            ...
        dfkd_core.errors.ConfigError: class_order must be empty with dataset 'none', which has no labels
    """

    dataset: str = "fashion_mnist"
    """`fashion_mnist`, `mnist`, `cifar10`, `cifar100` or `digits`; `torchvision:NAME`, a class in torchvision.datasets;
    `folder:PATH`, with a folder of pictures per class; `file:PATH`, an .npz or .safetensors with images and labels; or
    `none`. See docs/data.md."""
    root: str = "data"
    """Data folder. Files are searched here first, and downloads are stored here."""
    image_size: Annotated[int, Ge(1), Le(2048)] = 32
    """Height and width of a built-in teacher's input in pixels. 28-pixel images are zero-padded to 32, others are
    resized."""
    channels: Literal[0, 1, 3] = 0
    """Channels of a built-in teacher's input: 0 keeps those of the data set, 3 repeats a grey channel, 1 converts
    colours to grey (luma of ITU-R BT.601)."""
    class_order: tuple[int, ...] = ()
    """The teacher's class of each label of the data, for evaluation: [1, 0] swaps two classes, -1 marks a label that no
    image has. If empty, labels are used unchanged or matched by class names, and checked."""

    def faults(self) -> Iterator[str]:
        """Yield the faults beyond those of single ranges."""
        yield from dataset_faults(self.dataset)
        named = [label for label in self.class_order if label != -1]
        if self.class_order and (len(set(named)) < len(named) or min(named, default=-1) < 0):
            yield f"class_order must name each class once, from 0, or -1 for none, got {list(self.class_order)}"
        if self.class_order and self.dataset == NO_DATA:
            yield f"class_order must be empty with dataset {NO_DATA!r}, which has no labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """The facts about a data set that need no reading."""

    num_classes: int
    """Classes k."""
    in_channels: int
    """Channels c."""
    native_size: int
    """Height and width in pixels as published."""
    mean: tuple[float, ...]
    """Mean of the training pixels in [0, 1] at the published size, one per channel."""
    std: tuple[float, ...]
    """Standard deviation of the same pixels."""
    class_names: tuple[str, ...]
    """Names of the classes in the order of the labels."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Images and their classes.

    Example:
        >>> import torch
        >>> from dfkd_core import LabelledImages
        >>> images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
        >>> data = LabelledImages(images, torch.tensor([0, 1]), ("cat", "dog"))
        >>> len(data), data.class_names[data.labels[1]]
        (2, 'dog')
    """

    images: Tensor
    """uint8 [n, c, h, w]; a model takes them divided by 255."""
    labels: Tensor
    """int64 [n] in [0, k)."""
    class_names: tuple[str, ...]
    """Names of the k classes."""

    def __len__(self) -> int:
        """Return the number of images n."""
        return len(self.images)


def dataset_faults(name: str) -> Iterator[str]:
    """Yield the faults of a data set's name; whether the data set exists is not checked."""
    kind, _, place = name.partition(":")
    if kind == "torchvision" and place.isidentifier():
        return
    if kind == "folder" and place:
        return
    if kind == "file" and place:
        if not place.endswith(FILE_SUFFIXES):
            yield f"dataset {name!r} must end in {' or '.join(FILE_SUFFIXES)}"
        return
    if name not in (*_SPECS, NO_DATA):
        yield (
            f"dataset must be one of {', '.join(map(repr, _SPECS))}, torchvision:NAME, folder:PATH, file:PATH.npz, "
            f"file:PATH.safetensors or {NO_DATA!r}, got {name!r}"
        )


def is_built_in(name: str) -> bool:
    """Return whether the properties of the data set `name` are built in."""
    return name in _SPECS


def can_train(name: str) -> bool:
    """Return whether the data set `name` has a training split."""
    return is_built_in(name) or name.startswith("torchvision:")


def dataset_spec(name: str) -> DatasetSpec:
    """Return the built-in properties of the data set `name`, without reading it.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in _SPECS:
        raise ConfigError(f"No data set {name!r}. Data sets: {', '.join(_SPECS)}. Set data.dataset to one of them")
    return _SPECS[name]


def ensure_dataset(config: DataConfig, split: Split = "test", *, system_folder: Path = SYSTEM_FOLDER) -> Path | None:
    """Find or download the data set, and return its folder or file (None for `digits` and `none`, which have none).

    Every file of a built-in data set is checked. Of other data sets, `split` is opened.

    Raises:
        DataError: As for `open_dataset`.
    """
    if config.dataset in ("digits", NO_DATA):
        return None
    if is_built_in(config.dataset):
        return ensure_files(config.dataset, Path(config.root), system_folder=system_folder)
    open_dataset(config, split)
    return _user_path(config) or Path(config.root)


def data_fingerprint(config: DataConfig) -> str:
    """Return a digest of the contents of a folder or a file, and nothing for data sets that are the same everywhere."""
    path = _user_path(config)
    return fingerprint(path) if path and path.exists() else ""


def load_dataset(config: DataConfig, split: Split, *, system_folder: Path = SYSTEM_FOLDER) -> LabelledImages:
    """Read one split at the configured size and channels; download the data set if it is missing.

    Args:
        config: Data set, its place, and the image size.
        split: The published training or test split; for `digits`, which has none, a fixed stratified one.
        system_folder: Folder with Debian's data set packages.

    Raises:
        ConfigError: The data set has no splits.
        DataError: As for `open_dataset`.

    Example:
        >>> from dfkd_core import DataConfig, load_dataset
        >>> data = load_dataset(DataConfig(dataset="digits"), "test")  # part of scikit-learn, no download
        >>> data.images.shape, data.images.dtype
        (torch.Size([396, 1, 32, 32]), torch.uint8)
    """
    if not can_train(config.dataset):
        raise ConfigError(f"{config.dataset} has no training and test split. Set data.dataset to a data set with both")
    raw = open_dataset(config, split, system_folder=system_folder)
    channels = config.channels or next(iter(raw.read([0]))).shape[1]
    fit = resize if is_built_in(config.dataset) else resize_and_crop
    images = FittedImages(raw.read, len(raw.labels), (channels, config.image_size, config.image_size), fit)
    names = raw.class_names or tuple(map(str, range(int(raw.labels.max()) + 1)))
    return LabelledImages(images[torch.arange(len(images))], raw.labels, names)


def open_dataset(config: DataConfig, split: Split, *, system_folder: Path = SYSTEM_FOLDER) -> RawImages:
    """Open one split at the images' native size; a folder or a file is the same for both splits.

    Args:
        config: Data set and its place; not `none`.
        split: As for `load_dataset`.
        system_folder: Folder with Debian's data set packages.

    Raises:
        DataError: A file is missing, corrupt or malformed, or no way to find or download the data set worked.
    """
    kind, _, place = config.dataset.partition(":")
    path = _user_path(config)
    if path:
        return open_folder(path) if kind == "folder" else open_file(path)
    if kind == "torchvision":
        return open_torchvision(place, Path(config.root), split)
    if config.dataset == "digits":
        images, labels = _read_digits(split)
    elif config.dataset in ("cifar10", "cifar100"):
        images, labels = _read_cifar(config, split, system_folder)
    else:
        images, labels = _read_idx_set(config, split, system_folder)
    names = dataset_spec(config.dataset).class_names
    return RawImages(read=lambda positions: [images[positions]], labels=labels, class_names=names)


def _user_path(config: DataConfig) -> Path | None:
    kind, _, place = config.dataset.partition(":")
    return Path(place).expanduser() if kind in ("folder", "file") else None


def _read_digits(split: Split) -> tuple[Tensor, Tensor]:
    pixels, labels = _shipped_digits()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=derive_generator(0, "digits", "split", label))
        test[members[order[: round(len(members) * _DIGITS_TEST_FRACTION)]]] = True
    images = pixels.mul(255 / 16).round().byte().unsqueeze(1)
    chosen = test if split == "test" else ~test
    return images[chosen], labels[chosen]


def _shipped_digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits: pixels float64 [n, 8, 8] from 0 to 16, and labels int64 [n]."""
    try:
        with gzip.open(shipped_file("data/digits.csv.gz")) as stream:
            rows = torch.from_numpy(np.loadtxt(stream, delimiter=","))
    except OSError as error:
        raise DataError(
            f"The digits that scikit-learn ships cannot be read ({error}). Install it with: pip install scikit-learn"
        ) from error
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].long()


def _read_idx_set(config: DataConfig, split: Split, system_folder: Path) -> tuple[Tensor, Tensor]:
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    contents = read_files(config.dataset, names, Path(config.root), system_folder=system_folder)
    images, labels = (_parse_idx(contents[name]) for name in names)
    return images.unsqueeze(1), labels.long()


def _parse_idx(content: bytes) -> Tensor:
    """Read the unsigned-byte idx format: 4 bytes of which the last is the rank, big-endian sizes, then the values."""
    rank = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=rank, offset=4).tolist()
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    return torch.from_numpy(values.reshape(shape).copy())


def _read_cifar(config: DataConfig, split: Split, system_folder: Path) -> tuple[Tensor, Tensor]:
    folder = ensure_files(config.dataset, Path(config.root), system_folder=system_folder)
    dataset = torchvision_class(config.dataset)(folder.parent, train=split == "train")
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(dataset.targets, dtype=torch.int64)


_DIGIT_NAMES = tuple("0123456789")
_SPECS = {
    "fashion_mnist": DatasetSpec(
        num_classes=10,
        in_channels=1,
        native_size=28,
        mean=(0.2860,),
        std=(0.3530,),
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    "mnist": DatasetSpec(
        num_classes=10, in_channels=1, native_size=28, mean=(0.1307,), std=(0.3081,), class_names=_DIGIT_NAMES
    ),
    "cifar10": DatasetSpec(
        num_classes=10,
        in_channels=3,
        native_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        class_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    ),
    "cifar100": DatasetSpec(
        num_classes=100,
        in_channels=3,
        native_size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        class_names=tuple(
            """
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
            castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
            elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
            lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
            pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
            shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
            telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
            """.split()
        ),
    ),
    "digits": DatasetSpec(
        num_classes=10, in_channels=1, native_size=8, mean=(0.3053,), std=(0.3760,), class_names=_DIGIT_NAMES
    ),
}
