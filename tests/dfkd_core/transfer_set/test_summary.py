"""The summary of a set has the facts of its shards, for any number of images, classes and pixels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard
from dfkd_core.transfer_set.summary import SetSummary, read_summary, summarise_set, write_summary


def make_set(folder: Path, sizes: tuple[int, ...], num_classes: int, shape: tuple[int, int, int]) -> TransferSet:
    generator, records = torch.Generator().manual_seed(0), []
    for number, size in enumerate(sizes):
        first = sum(sizes[:number])
        shard = Shard(
            images=torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator),
            teacher_logits=3 * torch.randn(size, num_classes, generator=generator),
            soft_targets=torch.randn(size, num_classes, generator=generator).softmax(1),
            image_index=torch.arange(first, first + size),
        )
        records.append(write_shard(folder / shard_name(number), shard))
    settings: dict[str, Any] = {"method": "noise", "method_config": {}, "temperature": 1.0, "seed": 0}
    digests: dict[str, Any] = {"teacher_digest": "a", "statistics_digest": None, "code_version": ""}
    write_manifest(folder, shards=records, **settings, **digests)
    return TransferSet(folder)


def summary_of(made: TransferSet) -> SetSummary:
    return summarise_set(
        made,
        is_refined=lambda positions: torch.tensor(positions) % 2 == 0,
        drawn_axes=torch.empty(0, 2),
        image_axes=torch.ones(3, 2),
    )


@pytest.mark.parametrize(
    ("sizes", "num_classes", "shape"),
    [((1,), 2, (1, 8, 8)), ((5, 3), 2, (3, 6, 8)), ((40, 20), 10, (1, 32, 32)), ((3,), 1000, (3, 224, 224))],
)
def test_summary__has_the_facts_of_the_set(
    tmp_path: Path, sizes: tuple[int, ...], num_classes: int, shape: tuple[int, int, int]
) -> None:
    made = make_set(tmp_path, sizes, num_classes, shape)
    found = summary_of(made)
    logits, targets = made.teacher_logits[:], made.soft_targets[:]
    assert tuple(found.class_counts.tolist()) == made.manifest.class_histogram
    assert torch.equal(found.target_counts, targets.argmax(1).bincount(minlength=num_classes))
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    confidence = logits.double().softmax(1).amax(1)
    expected = [
        int(((confidence > low) & (confidence <= high)).sum()) for low, high in itertools.pairwise(edges.tolist())
    ]
    assert found.confidence_counts.tolist() == expected
    index = found.sample_index
    assert len(index) == min(sum(sizes), 24)
    assert torch.equal(found.sample_logits, logits[index])
    assert torch.equal(found.sample_targets, targets[index])
    assert torch.equal(found.sample_is_refined, index % 2 == 0)
    assert found.sample_images.shape[1:] == (shape[0], min(64, shape[1]), min(64, shape[2]))
    assert len(found.pair_index) == min(6, sum(sizes) * (sum(sizes) - 1) // 2)
    assert found.pair_images.shape[:2] == (len(found.pair_index), 2)
    assert found.num_compared == sum(sizes)


def test_nearest_pairs__are_shown_with_their_own_images(tmp_path: Path) -> None:
    made = make_set(tmp_path, (30, 30), 3, (1, 8, 8))
    found = summary_of(made)
    assert torch.equal(found.pair_images, made.images[found.pair_index.flatten()].view(6, 2, 1, 8, 8))
    first, second = (made.images[found.pair_index[:, side]].double() / 255 for side in (0, 1))
    torch.testing.assert_close(found.pair_distance, (first - second).square().flatten(1).mean(1).sqrt().float())


def test_summary__comes_back_from_equal_bytes(tmp_path: Path) -> None:
    made = make_set(tmp_path, (4,), 3, (1, 8, 8))
    for name in ("a", "b"):
        write_summary(tmp_path / name, summary_of(made))
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")
    found, again = summary_of(made), read_summary(tmp_path / "a")
    assert again.num_duplicates == found.num_duplicates
    assert torch.equal(again.pair_images, found.pair_images)
    assert torch.equal(again.drawn_axes, torch.empty(0, 2))
    with pytest.raises(TransferSetError, match=r"is missing.*dfkd run"):
        read_summary(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"1234567890")
    with pytest.raises(TransferSetError, match=r"cannot be read .*dfkd run"):
        read_summary(tmp_path / "c")
