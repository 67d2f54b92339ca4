import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd_core.data import fitting as image_fitting
from dfkd_core.data import published_files as dataset_files
from dfkd_core.data.datasets import DataConfig, LabelledImages, dataset_spec, ensure_dataset, load_dataset
from dfkd_core.data.fitting import with_channels
from dfkd_core.errors import ConfigError, DataError

NUM_IMAGES = {"train": 6, "t10k": 4}


def idx_content(values):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
    return header + values.tobytes()


def tiny_contents():
    contents = {}
    for offset, (prefix, count) in enumerate(NUM_IMAGES.items()):
        pixels = (np.arange(count * 28 * 28) + offset).astype(np.uint8).reshape(count, 28, 28)
        contents[f"{prefix}-images-idx3-ubyte"] = idx_content(pixels)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx_content((np.arange(count) % 10).astype(np.uint8))
    return contents


CONTENTS = tiny_contents()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder with a ten-image Fashion-MNIST, which is also there as MNIST."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    for dataset in ("fashion_mnist", "mnist"):
        files = replace(dataset_files.IDX_SETS[dataset], checksums=checksums)
        monkeypatch.setitem(dataset_files.IDX_SETS, dataset, files)
        (tmp_path / dataset).mkdir()
        for name, content in CONTENTS.items():
            (tmp_path / dataset / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def load(root, split="test", **settings):
    return load_dataset(DataConfig(root=str(root), **settings), split)


def expected_images(prefix="t10k"):
    values = np.frombuffer(CONTENTS[f"{prefix}-images-idx3-ubyte"][16:], dtype=np.uint8)
    return torch.from_numpy(values.reshape(-1, 1, 28, 28).copy())


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_idx_files_are_read_and_padded_to_32(root, split, prefix):
    loaded = load(root, split)
    assert isinstance(loaded, LabelledImages)
    assert len(loaded) == NUM_IMAGES[prefix]
    assert loaded.images.dtype == torch.uint8
    assert loaded.images.shape == (NUM_IMAGES[prefix], 1, 32, 32)
    assert torch.equal(loaded.images[..., 2:-2, 2:-2], expected_images(prefix))
    assert loaded.images.sum() == expected_images(prefix).sum()
    assert loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == list(range(NUM_IMAGES[prefix]))
    assert loaded.class_names == dataset_spec("fashion_mnist").class_names


def test_native_size_is_left_as_it_is_and_can_be_written(root):
    images = load(root, image_size=28).images
    assert torch.equal(images, expected_images())
    images.zero_()


def test_channels__grey_is_repeated_and_colour_becomes_luma(root):
    grey = load(root).images
    assert torch.equal(load(root, channels=3).images, grey.repeat(1, 3, 1, 1))
    assert torch.equal(load(root, channels=1).images, grey)
    colour = torch.tensor([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 10, 10]).view(4, 3, 1, 1).byte()
    assert with_channels(colour, 1).flatten().tolist() == [76, 150, 29, 10]


def test_other_sizes_are_resized_bilinearly(root, monkeypatch):
    monkeypatch.setattr(image_fitting, "CHUNK_IMAGES", 3)
    images = load(root, image_size=14).images
    expected = torch.nn.functional.interpolate(expected_images().float(), (14, 14), mode="bilinear", antialias=True)
    assert torch.equal(images, expected.round().byte())


def test_mnist_is_read_with_its_own_class_names(root):
    loaded = load(root, dataset="mnist", image_size=28)
    assert torch.equal(loaded.images, expected_images())
    assert loaded.class_names == tuple("0123456789")


def test_ensure_returns_the_folder_and_checks_both_splits(root):
    config = DataConfig(root=str(root))
    assert ensure_dataset(config) == root / "fashion_mnist"
    (root / "fashion_mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    assert len(load(root, "test")) == NUM_IMAGES["t10k"]
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is corrupt"):
        ensure_dataset(config)


def test_the_system_folder_is_passed_on(root):
    system = root / "system"
    system.mkdir()
    (root / "fashion_mnist").rename(system / "fashion-mnist")
    config = DataConfig(root=str(root))
    assert ensure_dataset(config, system_folder=system) == system / "fashion-mnist"
    assert len(load_dataset(config, "test", system_folder=system)) == NUM_IMAGES["t10k"]


class FakeCifar:
    """torchvision's class in so far as it is used: file lists and, per split, one array."""

    base_folder = "cifar-10-batches-py"
    train_list = (("data_batch_1", hashlib.md5(b"train").hexdigest()),)
    test_list = (("test_batch", hashlib.md5(b"test").hexdigest()),)
    meta = {"filename": "batches.meta", "md5": hashlib.md5(b"meta").hexdigest()}  # noqa: RUF012

    def __init__(self, root, train=True, download=False):
        folder = root / self.base_folder
        if download:
            folder.mkdir()
            for name, content in (("data_batch_1", b"train"), ("test_batch", b"test"), ("batches.meta", b"meta")):
                (folder / name).write_bytes(content)
        assert (folder / "test_batch").exists()
        self.data = np.arange(2 * 32 * 32 * 3).astype(np.uint8).reshape(2, 32, 32, 3) + (0 if train else 1)
        self.targets = [3, 9]


def test_cifar_is_fetched_and_read_by_torchvision(tmp_path, monkeypatch):
    from dfkd_core.common.vision import datasets

    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    loaded = load(tmp_path, dataset="cifar10")
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    assert sorted(path.name for path in folder.iterdir()) == ["batches.meta", "data_batch_1", "test_batch"]
    assert loaded.images.shape == (2, 3, 32, 32)
    assert loaded.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert loaded.labels.tolist() == [3, 9]
    (folder / "data_batch_1").write_bytes(b"other")
    with pytest.raises(DataError, match="data_batch_1 is corrupt: expected content with md5"):
        load(tmp_path, dataset="cifar10")


def test_digits_need_no_files(tmp_path):
    config = DataConfig(dataset="digits", root=str(tmp_path / "none"), image_size=8)
    assert ensure_dataset(config) is None
    train, test = load_dataset(config, "train"), load_dataset(config, "test")
    assert len(train) + len(test) == 1797
    assert abs(len(test) - 397) <= 5
    assert train.images.shape[1:] == (1, 8, 8)
    assert (train.images.min().item(), train.images.max().item()) == (0, 255)
    shares = test.labels.bincount() / torch.cat([train.labels, test.labels]).bincount()
    assert torch.allclose(shares, torch.full((10,), 397 / 1797), atol=0.005)
    assert not tmp_path.joinpath("none").exists()


def test_digits_split_is_fixed_and_without_overlap():
    config = DataConfig(dataset="digits", image_size=8)
    train, test = load_dataset(config, "train"), load_dataset(config, "test")
    rows = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in rows for image in test.images)
    assert torch.equal(load_dataset(config, "test").images, test.images)


def test_digits_are_scaled_to_the_full_range():
    from sklearn.datasets import load_digits

    images = load_dataset(DataConfig(dataset="digits", image_size=8), "train").images
    levels = {round(value * 255 / 16) for value in np.unique(load_digits().images)}
    assert set(images.unique().tolist()) == levels


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    config, known = DataConfig(dataset="digits", image_size=8), load_digits()
    found = {
        (label, image.numpy().tobytes())
        for split in ("train", "test")
        for label, image in zip(load_dataset(config, split).labels.tolist(), load_dataset(config, split).images)
    }
    wanted = np.round(known.images * (255 / 16)).astype(np.uint8)
    assert found == {(label, image.tobytes()) for label, image in zip(known.target.tolist(), wanted)}


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "cifar100", "digits"])
def test_specs_agree_with_themselves(name):
    spec = dataset_spec(name)
    assert len(spec.class_names) == len(set(spec.class_names)) == spec.num_classes
    assert len(spec.mean) == len(spec.std) == spec.in_channels
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))


def test_class_names_are_those_of_torchvision():
    from dfkd_core.common.vision import datasets

    assert list(dataset_spec("fashion_mnist").class_names) == datasets.FashionMNIST.classes
    assert list(dataset_spec("cifar100").class_names) == sorted(dataset_spec("cifar100").class_names)


def test_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"No data set 'imagenet'\. Data sets: fashion_mnist, mnist, cifar10"):
        dataset_spec("imagenet")
    with pytest.raises(ConfigError, match="dataset must be one of 'fashion_mnist'"):
        DataConfig(dataset="imagenet")
    with pytest.raises(ConfigError, match="image_size must be at least 1"):
        DataConfig(image_size=0)
