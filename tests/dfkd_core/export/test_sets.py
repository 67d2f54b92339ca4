"""A transfer set in other formats, read with the packages that own them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import ConfigError, TransferSetError
from dfkd_core.export import sets
from dfkd_core.export.sets import SetFormat, check_set, set_formats, write_set
from dfkd_core.models.architectures import import_timm
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard

_LEAVES_FILES_OPEN = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
NAMES = ("t-shirt/top", "../up", "Zebra", "apple")


def make_set(folder: Path, channels: int = 3, num_images: int = 25) -> TransferSet:
    generator = torch.Generator().manual_seed(0)
    records = []
    for number, positions in enumerate(torch.arange(num_images).split(10)):
        logits = torch.randn(len(positions), 4, generator=generator)
        # No image of class 2.
        logits[:, 2] = -9
        images = torch.randint(0, 256, (len(positions), channels, 8, 8), generator=generator, dtype=torch.uint8)
        shard = Shard(images=images, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=positions)
        records.append(write_shard(folder / shard_name(number), shard))
    write_manifest(
        folder, method="noise", method_config={}, temperature=1.0, teacher_digest="a1", statistics_digest=None,
        code_version="", seed=0, shards=records,
    )  # fmt: skip
    return TransferSet(folder)


@pytest.fixture(params=[1, 3])
def transfer_set(tmp_path: Path, request: pytest.FixtureRequest) -> TransferSet:
    return make_set(tmp_path / "set", request.param)


def written(transfer_set: TransferSet, folder: Path, format: SetFormat) -> Path:
    folder.mkdir()
    write_set(transfer_set, folder, format, class_names=NAMES)
    return folder


def check_rows(transfer_set: TransferSet, rows: Iterator[tuple[int, Any, int, Any]]) -> None:
    """Compare position, picture, label and logits of all images with the set's."""
    seen = set()
    for position, picture, label, logits in rows:
        pixels = np.asarray(picture)
        expected = transfer_set.images[position].numpy()
        assert np.array_equal(pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1), expected.squeeze())
        row = transfer_set.teacher_logits[position]
        assert np.array_equal(np.asarray(logits, dtype=np.float32), row.numpy())
        assert label == int(row.argmax())
        seen.add(position)
    assert seen == set(range(len(transfer_set)))


@pytest.mark.parametrize("format", set_formats())
def test_the_same_set__gives_the_same_bytes(tmp_path: Path, format: SetFormat) -> None:
    transfer_set = make_set(tmp_path / "set")
    folders = [written(transfer_set, tmp_path / name, format) for name in ("one", "two")]
    digests = [
        {path.relative_to(folder): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    ]
    assert digests[0] == digests[1]
    assert not (tmp_path / "up").exists()


@_LEAVES_FILES_OPEN
def test_webdataset__reads_it(tmp_path: Path, transfer_set: TransferSet, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(sets, "_IN_A_FILE", 10)
    out = written(transfer_set, tmp_path / "out", "webdataset")
    files = sorted(map(str, out.glob("train-*.tar")))
    assert len(files) == 3
    read = (
        webdataset.WebDataset(files, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "cls", "logits.npy")
    )
    mode = "L" if transfer_set.manifest.image_shape[0] == 1 else "RGB"
    check_rows(transfer_set, ((int(key), png.convert(mode), label, logits) for key, png, label, logits in read))
    info = json.loads((out / "_info.json").read_text())["splits"]["train"]
    assert (info["num_samples"], info["shard_lengths"]) == (25, [10, 10, 5])


def test_datasets__reads_the_folder(tmp_path: Path, transfer_set: TransferSet) -> None:
    datasets = pytest.importorskip("datasets")
    out = written(transfer_set, tmp_path / "out", "imagefolder")
    read = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    lines = [json.loads(line) for line in (out / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len(read) == len(lines) == 25
    by_logits = {tuple(line["logits"]): int(Path(line["file_name"]).stem) for line in lines}
    check_rows(
        transfer_set,
        ((by_logits[tuple(row["logits"])], row["image"], row["label"], row["logits"]) for row in read),
    )


def test_datasets__reads_parquet(tmp_path: Path, transfer_set: TransferSet, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(sets, "_IN_A_FILE", 10)
    out = written(transfer_set, tmp_path / "out", "parquet")
    read = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == list(NAMES)
    check_rows(transfer_set, ((number, row["image"], row["label"], row["logits"]) for number, row in enumerate(read)))


def test_folders__are_in_the_order_of_the_classes_and_inside(tmp_path: Path) -> None:
    out = written(make_set(tmp_path / "set"), tmp_path / "out", "imagefolder")
    folders = (out / "class_map.txt").read_text().splitlines()
    assert folders == sorted(folders) == ["0_t-shirt_top", "1_.._up", "2_Zebra", "3_apple"]
    # A class without images has no folder, and class_map.txt keeps its number.
    assert sorted(path.name for path in (out / "train").iterdir() if path.is_dir()) == [
        folders[0],
        folders[1],
        folders[3],
    ]


@_LEAVES_FILES_OPEN
def test_timm__numbers_the_classes_alike(tmp_path: Path) -> None:
    transfer_set = make_set(tmp_path / "set")
    out = written(transfer_set, tmp_path / "out", "imagefolder")
    read = import_timm().data.create_dataset("", root=str(out), split="train", class_map=str(out / "class_map.txt"))
    labels = {int(Path(read.filename(number)).stem): read[number][1] for number in range(len(read))}
    answers = [int(transfer_set.teacher_logits[number].argmax()) for number in range(25)]
    assert [labels[number] for number in range(25)] == answers
    assert isinstance(read[0][0], Image.Image)


def test_a_wrong_format_or_number_of_names__is_refused(tmp_path: Path) -> None:
    transfer_set = make_set(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"No format 'tfrecord'\. Formats: webdataset, imagefolder, parquet"):
        write_set(transfer_set, tmp_path, "tfrecord")  # type: ignore[arg-type]  # what a user may type
    with pytest.raises(ConfigError, match="2 class names for 4 classes"):
        write_set(transfer_set, tmp_path, "parquet", class_names=("a", "b"))


def test_two_channels__are_no_picture(tmp_path: Path) -> None:
    with pytest.raises(TransferSetError, match="2 channels, and a PNG file holds 1 or 3"):
        check_set(make_set(tmp_path / "set", channels=2))
