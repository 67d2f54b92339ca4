"""Real classes of torchvision on small files laid out as they expect them."""

import gzip

import numpy as np
import pytest
from PIL import Image

from dfkd_core.data.datasets import DataConfig, ensure_dataset, load_dataset
from dfkd_core.data.torchvision_sets import open_torchvision
from dfkd_core.errors import DataError


def idx_content(values):
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()


def write_kmnist(root, counts=(6, 4)):
    raw = root / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in zip(("train", "t10k"), counts):
        pixels = (np.arange(count * 784) % 251).astype(np.uint8).reshape(count, 28, 28)
        for name, values in (("images-idx3", pixels), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            (raw / f"{prefix}-{name}-ubyte").write_bytes(idx_content(values))
            (raw / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx_content(values)))


@pytest.mark.parametrize("below", ["", "KMNIST"])
def test_a_class_with_train_is_found_in_the_data_folder(tmp_path, below):
    write_kmnist(tmp_path / below)
    raw = open_torchvision("KMNIST", tmp_path, "test")
    assert raw.labels.tolist() == [0, 1, 2, 3]
    assert raw.class_names[:2] == ("o", "ki")
    first, _ = raw.read([0, 1])
    assert first.flatten().tolist() == [value % 251 for value in range(784)]
    config = DataConfig(dataset="torchvision:KMNIST", root=str(tmp_path))
    assert ensure_dataset(config) == tmp_path
    loaded = load_dataset(config, "train")
    assert loaded.images.shape == (6, 1, 32, 32)
    assert loaded.class_names == raw.class_names


@pytest.mark.parametrize(("name", "place"), [("Country211", "country211"), ("RenderedSST2", "rendered-sst2")])
def test_a_class_with_split_is_read_as_pictures(tmp_path, name, place):
    for split in ("train", "valid", "test"):
        for label in ("negative", "positive"):
            folder = tmp_path / place / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (5, 4), (len(split), 1, len(label))).save(folder / f"{label}.png")
    raw = open_torchvision(name, tmp_path, "test")
    assert raw.labels.tolist() == [0, 1]
    assert raw.class_names == ("negative", "positive")
    assert [image[0, :, 0, 0].tolist() for image in raw.read([1, 0])] == [[4, 1, 8], [4, 1, 8]]
    assert next(iter(raw.read([0]))).shape == (1, 3, 4, 5)


def test_names_that_are_no_classification_set(tmp_path):
    with pytest.raises(DataError, match=r"torchvision\.datasets\.SVNH does not exist; did you mean SVHN\?"):
        open_torchvision("SVNH", tmp_path, "test")
    with pytest.raises(DataError, match=r"ImageNet takes no root, download.*ImageNet's too, set data\.dataset"):
        open_torchvision("ImageNet", tmp_path, "test")
    for name in ("FakeData", "ImageFolder", "VisionDataset", "folder", "os"):
        with pytest.raises(DataError, match="Valid classes: "):
            open_torchvision(name, tmp_path, "test")


def test_labels_that_are_not_one_class_per_image(tmp_path):
    write_kmnist(tmp_path)
    # The class without compatibility mode would give eight numbers per image; detection sets give lists of boxes.
    folder = tmp_path / "Kitti" / "raw" / "testing" / "image_2"
    folder.mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(folder / "0.png")
    with pytest.raises(DataError, match="labels of torchvision:Kitti are not one class per image"):
        open_torchvision("Kitti", tmp_path, "test")


def test_a_failed_download_tells_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", _refuse)
    with pytest.raises(DataError) as caught:
        open_torchvision("SVHN", tmp_path, "test")
    lines = str(caught.value).splitlines()
    assert lines[0] == "The test split of torchvision:SVHN was not found and could not be loaded. Tried:"
    assert lines[1].startswith(f"  - {tmp_path}: Dataset not found or corrupted")
    assert lines[-1].startswith(f"  - {tmp_path}/SVHN (download): no network")


def _refuse(*args, **kwargs):
    raise OSError("no network")
