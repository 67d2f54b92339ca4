import errno
import json
import os
import pickle
from pathlib import Path

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
    described = {
        "method": "soft_target",
        "method_config": {"refinement": {"iterations": 3}},
        "temperature": 20.0,
        "teacher_digest": "t1",
        "statistics_digest": "s1",
        "code_version": "c1",
        "seed": 7,
    }
    if "shards" not in changes:
        described["shards"] = [write_shard(folder / shard_name(i), shard(6 * i, n)) for i, n in enumerate((6, 4))]
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
    store(tmp_path, shards=[write_shard(tmp_path / shard_name(i), shard(4 * i, 4)) for i in range(4)])
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
        (lambda content: content.update(format_version=99), "a newer dfkd wrote it, so update dfkd"),
        (
            lambda content: content.update(format_version=1),
            "format version 1, .* an older dfkd wrote it.* Make it again",
        ),
        (lambda content: content.update(format_version="2"), "format version '2', this program reads 2"),
        (lambda content: content.pop("format_version"), "lacks format_version"),
        (lambda content: content.update(num_images=11), "num_images is 11, but its shards hold 10"),
        (lambda content: content.update(num_images=10.0), "num_images must be an integer of at least 1, got 10.0"),
        (lambda content: content.update(num_images=True), "num_images must be an integer of at least 1, got True"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(shards=[]), "shards must be a list of at least one shard"),
        (lambda content: content.update(shards=[3]), "shard 0 must have file, sha256, num_images, got 3"),
        (lambda content: content.update(shards={}), "shards must be a list"),
        (lambda content: content["shards"][0].update(num_images="6"), "num_images '6' must be an integer"),
        (lambda content: content["shards"][0].update(num_images=-6), "num_images -6 must be an integer of at least 1"),
        (lambda content: content["shards"][0].update(sha256="x"), "sha256 'x' must be 64 hex digits"),
        (lambda content: content["shards"][0].update(file=7), "file 7 must be like"),
        (lambda content: content["shards"][0].update(size=7), "shard 0 must have file, sha256, num_images"),
        (lambda content: content["shards"].__setitem__(0, content["shards"][1]), "lists shard-00001.* more than once"),
        (lambda content: content.update(image_shape=[2, 4]), "image_shape must be three integers"),
        (lambda content: content.update(image_shape="245"), "image_shape must be three integers"),
        (lambda content: content.update(num_classes=4), "class_histogram has 3 entries for 4 classes"),
        (lambda content: content["class_histogram"].append(0), "class_histogram has 4 entries for 3 classes"),
        (lambda content: content.update(class_histogram=[9, 0, 0]), "class_histogram counts 9 images of 10"),
        (lambda content: content.update(class_histogram=[11, -1, 0]), "class_histogram must be a list of integers"),
        (lambda content: content.update(mean_confidence=1.5), "mean_confidence must be a number from 0 to 1"),
        (lambda content: content.update(target_agreement=None), "target_agreement must be a number from 0 to 1"),
        (lambda content: content.update(temperature=0), "temperature must be a number from 1e-6 to 1e6"),
        (lambda content: content.update(method_config=[]), "method_config must be an object"),
        (lambda content: content.update(method="a\x1b[2J"), "method must be a name"),
        (lambda content: content.update(teacher_digest=None), "teacher_digest must be a text"),
        (lambda content: content.update(seed=0.5), "seed must be an integer"),
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


@pytest.mark.parametrize("content", ["[]", "null", '"text"', '{"format_version": 2, "shards": 3}', "{}"])
def test_json_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(
        TransferSetError, match=r"manifest\.json (is not a manifest|cannot be read).* Make it again: dfkd"
    ):
        read_manifest(tmp_path)


def test_a_manifest_with_a_key_twice_or_a_number_that_is_none_is_refused(tmp_path):
    store(tmp_path)
    path = tmp_path / MANIFEST_NAME
    whole = path.read_text()
    for before, after, text in (
        ('"seed": 7', '"seed": 7, "seed": 8', "the key 'seed' twice"),
        ('"temperature": 20.0', '"temperature": NaN', "NaN, which is not JSON"),
        ('"temperature": 20.0', '"temperature": 1e999', "1e999 is too large"),
    ):
        path.write_text(whole.replace(before, after))
        with pytest.raises(TransferSetError, match=text):
            read_manifest(tmp_path)


def test_a_manifest_that_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / MANIFEST_NAME)
    with pytest.raises(TransferSetError, match=r"manifest\.json is a pipe in place of a file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"temperature": float("nan")}, {"temperature": 0.0}, {"method": ""}, {"method_config": {"a": float("inf")}}],
)
def test_no_manifest_is_written_that_could_not_be_read(tmp_path, changes):
    with pytest.raises(TransferSetError, match="is not written"):
        store(tmp_path, **changes)
    assert not (tmp_path / MANIFEST_NAME).exists()


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


def test_a_set_that_was_read_goes_to_another_process(tmp_path):
    store(tmp_path)
    data = TransferSet(tmp_path)
    _ = data[0]
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert torch.equal(copy.teacher_logits[:], data.teacher_logits[:])


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
    logits, targets = torch.full((2, n, 2), 0.5)
    big = Shard(images=images, teacher_logits=logits, soft_targets=targets, image_index=torch.arange(n))
    store(tmp_path, shards=[write_shard(tmp_path / shard_name(2), big)])
    del images, big
    before, data = own_mib(), TransferSet(tmp_path)
    for positions in torch.arange(n).split(1000):
        assert not data.images[positions].any()
    assert own_mib() - before < 10
