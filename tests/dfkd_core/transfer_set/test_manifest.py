import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_core.common.pixels import quantise
from dfkd_core.errors import TransferSetError
from dfkd_core.transfer_set import shards
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, read_manifest, verify_transfer_set, write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, read_shard, shard_name, write_shard


def shard(first, n):
    generator = torch.Generator().manual_seed(first)
    return Shard(
        images=torch.randint(0, 256, (n, 2, 4, 5), generator=generator, dtype=torch.uint8),
        teacher_logits=torch.randn(n, 3, generator=generator),
        soft_targets=torch.randn(n, 3, generator=generator).softmax(1),
        image_index=torch.arange(first, first + n),
    )


def store(folder, **changes):
    records = [
        write_shard(folder / shard_name(0), shard(0, 6)),
        write_shard(folder / shard_name(1), shard(6, 4)),
    ]
    described = {
        "method": "soft_target",
        "method_config": {"refinement": {"iterations": 3}},
        "temperature": 20.0,
        "teacher_digest": "t1",
        "statistics_digest": "s1",
        "code_version": "c1",
        "seed": 7,
        "shards": records,
    }
    return write_manifest(folder, **{**described, **changes})


def edit_manifest(folder, change):
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_quantise_rounds_to_the_nearest_grey_level():
    assert quantise(torch.tensor([-0.1, 0.0, 0.5, 1 / 255, 0.0019, 1.0, 1.2])).tolist() == [0, 0, 128, 1, 0, 255, 255]


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    written = shard(0, 6)
    record = write_shard(tmp_path / "new" / shard_name(0), written)
    assert (record.file, record.num_images) == ("shard-00000.safetensors", 6)
    read = read_shard(tmp_path / "new" / shard_name(0))
    for name in ("images", "teacher_logits", "soft_targets", "image_index"):
        assert torch.equal(getattr(read, name), getattr(written, name))


def test_equal_inputs_give_equal_bytes(tmp_path):
    assert store(tmp_path / "a") == store(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_manifest_tells_what_is_in_the_shards(tmp_path):
    manifest = store(tmp_path)
    logits, targets = (
        torch.cat([getattr(shard(*place), name) for place in ((0, 6), (6, 4))])
        for name in ("teacher_logits", "soft_targets")
    )
    assert (manifest.num_images, manifest.num_classes, manifest.image_shape) == (10, 3, (2, 4, 5))
    assert list(manifest.class_histogram) == torch.bincount(logits.argmax(1), minlength=3).tolist()
    assert manifest.target_agreement == pytest.approx((logits.argmax(1) == targets.argmax(1)).float().mean().item())
    assert manifest.mean_confidence == pytest.approx(logits.softmax(1).amax(1).mean().item(), rel=1e-5)
    assert read_manifest(tmp_path) == manifest


def test_an_untouched_set_verifies(tmp_path):
    manifest = store(tmp_path)
    assert verify_transfer_set(tmp_path, "t1") == manifest


def test_every_fault_is_named_at_once(tmp_path):
    records = [write_shard(tmp_path / shard_name(i), shard(10 * i, 4)) for i in range(4)]
    store(tmp_path, shards=records[:1])
    records[:2] = [write_shard(tmp_path / shard_name(i), shard(10 * i, 4)) for i in range(2)]
    store_all: dict[str, Any] = {"method": "noise", "method_config": {}, "temperature": 1.0, "teacher_digest": "t1"}
    write_manifest(tmp_path, **store_all, statistics_digest=None, code_version="c", seed=0, shards=records)
    write_shard(tmp_path / shard_name(1), shard(99, 4))
    (tmp_path / shard_name(2)).unlink()
    whole = (tmp_path / shard_name(3)).read_bytes()
    (tmp_path / shard_name(3)).write_bytes(whole[:-10])
    with pytest.raises(TransferSetError) as raised:
        verify_transfer_set(tmp_path, "t2")
    text = str(raised.value)
    assert "shard-00001.safetensors has changed" in text
    assert "shard-00002.safetensors is missing" in text
    assert "shard-00003.safetensors is truncated" in text
    assert "of another teacher: t1, expected t2" in text
    assert "shard-00000" not in text
    assert "dfkd stage synthesize" in text


@pytest.mark.parametrize(
    "name",
    ["../shard-00000.safetensors", "/etc/passwd", "a/shard-00000.safetensors", "..", "shard-00000.safetensors\n"],
)
def test_a_manifest_cannot_name_files_outside_of_its_folder(tmp_path, name):
    store(tmp_path)
    edit_manifest(tmp_path, lambda content: content["shards"][0].update(file=name))
    with pytest.raises(TransferSetError, match="in its own folder"):
        TransferSet(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.update(format_version=99), "format version 99, this program reads 2"),
        (lambda content: content.pop("seed"), "seed"),
        (lambda content: content.update(num_images=11), "num_images is 11"),
        (lambda content: content.update(surprise=1), "surprise"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, change, text):
    store(tmp_path)
    edit_manifest(tmp_path, change)
    with pytest.raises(TransferSetError, match=text):
        read_manifest(tmp_path)


def test_a_manifest_that_is_not_json_or_not_there_is_refused(tmp_path):
    with pytest.raises(TransferSetError, match="No transfer set in"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text('{"shards": [')
    with pytest.raises(TransferSetError, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', '{"format_version": 2, "shards": 3}'])
def test_json_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(TransferSetError, match="not a manifest"):
        read_manifest(tmp_path)


def test_no_shards_make_no_manifest(tmp_path):
    with pytest.raises(TransferSetError, match="at least one"):
        store(tmp_path, shards=[])


def test_a_full_disk_leaves_nothing_behind_and_says_so(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(TransferSetError, match=r"No space left on device.*Finished shards are kept"):
        write_shard(tmp_path / shard_name(0), shard(0, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TransferSetError, match="Cannot write"):
        write_shard(tmp_path / "file" / shard_name(0), shard(0, 2))


def test_the_data_set_gives_images_in_the_unit_range_and_logits(tmp_path):
    store(tmp_path)
    data = TransferSet(tmp_path)
    image, logits = data[7]
    assert len(data) == 10
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, shard(6, 4).images[1] / 255)
    assert torch.equal(logits, shard(6, 4).teacher_logits[1])
    assert data.images.shape == (10, 2, 4, 5)
    assert data.soft_targets.shape == (10, 3)
    with pytest.raises(IndexError):
        data[10]


def test_a_loader_reads_the_data_set(tmp_path):
    store(tmp_path)
    images, logits = next(iter(torch.utils.data.DataLoader(TransferSet(tmp_path), batch_size=4)))
    assert images.shape == (4, 2, 4, 5)
    assert logits.shape == (4, 3)


def test_the_data_set_names_a_missing_shard_and_one_of_another_length(tmp_path):
    store(tmp_path)
    write_shard(tmp_path / shard_name(1), shard(6, 3))
    with pytest.raises(TransferSetError, match=r"shard-00001.safetensors holds 3 images, the manifest has 4"):
        _ = TransferSet(tmp_path).images
    (tmp_path / shard_name(1)).unlink()
    with pytest.raises(TransferSetError, match=r"shard-00001.safetensors is missing"):
        TransferSet(tmp_path)


def test_rows_of_all_shards_are_those_of_the_joined_tensors_and_stay_in_the_files(tmp_path):
    store(tmp_path)
    data, order = TransferSet(tmp_path), torch.tensor([9, 0, 5, 6, 5])
    for name in ("images", "teacher_logits", "soft_targets"):
        whole = torch.cat([getattr(shard(0, 6), name), getattr(shard(6, 4), name)])
        rows = getattr(data, name)
        assert rows.shape == whole.shape
        assert torch.equal(rows[order], whole[order])
        assert torch.equal(rows[2:8], whole[2:8])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process's own memory is told by Linux alone")
def test_reading_a_set_takes_pages_of_its_files_and_no_memory_of_its_own(tmp_path):
    def own_mib():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024

    n = 40_000
    images = torch.zeros(n, 1, 32, 32, dtype=torch.uint8)
    logits, targets = torch.zeros(2, n, 2)
    big = Shard(images=images, teacher_logits=logits, soft_targets=targets, image_index=torch.arange(n))
    store(tmp_path, shards=[write_shard(tmp_path / shard_name(2), big)])
    del images, big
    before, data = own_mib(), TransferSet(tmp_path)
    for positions in torch.arange(n).split(1000):
        assert not data.images[positions].any()
    assert own_mib() - before < 10
