"""Labelled data sets, for training a teacher and for evaluation only.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.dataset_files import SYSTEM_FOLDER, ensure_files, read_files, torchvision_class
from dfkd_core.errors import ConfigError
from dfkd_core.sections import PositiveInt, config_section
from dfkd_core.seeding import derive_generator

__all__ = [
    "DataConfig",
    "DatasetName",
    "DatasetSpec",
    "LabelledImages",
    "Split",
    "dataset_spec",
    "ensure_dataset",
    "load_dataset",
]

DatasetName = Literal["fashion_mnist", "mnist", "cifar10", "cifar100", "digits"]
Split = Literal["train", "test"]

_RESIZE_CHUNK_IMAGES = 4096
_DIGITS_TEST_FRACTION = 397 / 1797
_LUMA = torch.tensor([0.299, 0.587, 0.114])


@config_section
class DataConfig:
    """Which labelled data set the teacher is trained on and all models are evaluated on."""

    dataset: DatasetName = "fashion_mnist"
    """Name of the data set. `digits` comes with scikit-learn; the others are found or fetched."""
    root: str = "data"
    """Data folder, where files are looked for first and where fetched ones are put."""
    image_size: PositiveInt = 32
    """Height and width in pixels that the models see. 28-pixel images are zero-padded to 32, others resized."""
    channels: Literal[0, 1, 3] = 0
    """Channels that the models see: 0 leaves the data set's own, 3 repeats a grey one, 1 turns colours into grey (luma
    of ITU-R BT.601)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What is known about a data set without reading it."""

    num_classes: int
    """Classes k."""
    in_channels: int
    """Channels c."""
    native_size: int
    """Height and width in pixels as published."""
    mean: tuple[float, ...]
    """Mean of the training pixels in [0, 1] at native size, one per channel."""
    std: tuple[float, ...]
    """Standard deviation of the same pixels."""
    class_names: tuple[str, ...]
    """Names of the classes in the order of the labels."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Images with their classes."""

    images: Tensor
    """uint8 [n, c, h, w]; divided by 255 it is what a model takes."""
    labels: Tensor
    """int64 [n] in [0, k)."""
    class_names: tuple[str, ...]
    """Names of the k classes."""

    def __len__(self) -> int:
        """Return the number of images n."""
        return len(self.images)


def dataset_spec(name: str) -> DatasetSpec:
    """Return what is known about the data set `name` without reading it.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in _SPECS:
        raise ConfigError(f"No data set {name!r}. Data sets: {', '.join(_SPECS)}. Set data.dataset to one of them")
    return _SPECS[name]


def ensure_dataset(config: DataConfig, *, system_folder: Path = SYSTEM_FOLDER) -> Path | None:
    """Find the data set or fetch it, check every file, and return its folder (None for `digits`, which has none).

    Raises:
        DataError: As `load_dataset`.
    """
    if config.dataset == "digits":
        return None
    return ensure_files(config.dataset, Path(config.root), system_folder=system_folder)


def load_dataset(config: DataConfig, split: Split, *, system_folder: Path = SYSTEM_FOLDER) -> LabelledImages:
    """Read one split at the configured image size, fetching the data set if it is not there yet.

    Args:
        config: Which data set, from where, at what size.
        split: The published training or test split; of `digits`, which has none, a fixed stratified one.
        system_folder: Folder with Debian's data set packages.

    Raises:
        DataError: A file in the data folder is corrupt, or no way to find or fetch the data set worked.
    """
    spec = dataset_spec(config.dataset)
    if config.dataset == "digits":
        images, labels = _read_digits(split)
    elif config.dataset in ("cifar10", "cifar100"):
        images, labels = _read_cifar(config, split, system_folder)
    else:
        images, labels = _read_idx_set(config, split, system_folder)
    images = _with_channels(images, config.channels or images.shape[1])
    return LabelledImages(_fit_to_size(images, config.image_size), labels, spec.class_names)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    own = images.shape[1]
    if own == channels:
        return images
    if own == 1:
        return images.repeat(1, channels, 1, 1)
    luma = [torch.tensordot(chunk.float(), _LUMA, ([1], [0])) for chunk in torch.split(images, _RESIZE_CHUNK_IMAGES)]
    return torch.cat([chunk.round().clamp(0, 255).byte()[:, None] for chunk in luma])


def _fit_to_size(images: Tensor, image_size: int) -> Tensor:
    native_size = images.shape[-1]
    if native_size == image_size:
        return images
    if (native_size, image_size) == (28, 32):
        return functional.pad(images, (2, 2, 2, 2))
    size = (image_size, image_size)
    chunks = [
        functional.interpolate(chunk.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for chunk in torch.split(images, _RESIZE_CHUNK_IMAGES)
    ]
    return torch.cat(chunks)


def _read_digits(split: Split) -> tuple[Tensor, Tensor]:
    # Imported here: scikit-learn takes a second that no other data set needs.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=derive_generator(0, "digits", "split", label))
        test[members[order[: round(len(members) * _DIGITS_TEST_FRACTION)]]] = True
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().byte().unsqueeze(1)
    chosen = test if split == "test" else ~test
    return images[chosen], labels[chosen]


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
