"""A set with a fault is refused by `verify_transfer_set`, and a student cannot be trained on it."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfkd_core.common.digests import file_sha256
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill
from dfkd_core.errors import TransferSetError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, verify_transfer_set, write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, read_shard, shard_name, write_shard

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.5,), std=(0.25,), layer="fc1")
SIZES = (6, 4)
# The stored logits are the labels.
LABELLED = DistillationConfig(epochs=1, start="random", feature_weight=0.0, augmentation=AugmentationConfig())


def make_shard(first, n):
    generator = torch.Generator().manual_seed(first)
    return Shard(
        images=torch.randint(0, 256, (n, 1, 32, 32), generator=generator, dtype=torch.uint8),
        teacher_logits=torch.randn(n, 3, generator=generator),
        soft_targets=torch.randn(n, 3, generator=generator).softmax(1),
        image_index=torch.arange(first, first + n),
    )


@pytest.fixture(scope="module")
def teacher():
    return Teacher(build_classifier(CARD, seed=0))


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    records = [write_shard(folder / shard_name(i), make_shard(6 * i, n)) for i, n in enumerate(SIZES)]
    write_manifest(
        folder, method="noise", method_config={}, temperature=1.0, teacher_digest=teacher.digest,
        statistics_digest=None, code_version="", seed=0, shards=records,
    )  # fmt: skip
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def edit_manifest(folder, change):
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_shard(folder, change, index=1):
    """Change the tensors of a shard, and its digest in the manifest, as somebody would who made the set by hand."""
    path = folder / shard_name(index)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    digest = file_sha256(path)
    edit_manifest(folder, lambda content: content["shards"][index].update(sha256=digest))


def put(name, position, value):
    def change(tensors):
        tensors[name][position] = value

    return change


def convert(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def cut(name, *slices):
    return lambda tensors: tensors.update({name: tensors[name][slices].contiguous()})


HEADERS = [
    (convert("images", torch.float32), r"has images of float32 \[4, 1, 32, 32\] in place of uint8 \[n, c, h, w\]"),
    (convert("teacher_logits", torch.float64), "has teacher_logits of float64"),
    (convert("soft_targets", torch.float16), "has soft_targets of float16"),
    (convert("image_index", torch.int32), r"has image_index of I32 \[4\] in place of int64 \[n\]"),
    (cut("images", slice(None), 0), r"has images of uint8 \[4, 32, 32\]"),
    (cut("images", slice(None), slice(None), slice(16)), r"holds images of shape \[1, 16, 32\], the manifest has"),
    (cut("images", slice(0)), r"has images of uint8 \[0, 1, 32, 32\]"),
    (cut("image_index", slice(3)), "has tensors of 3 and of 4 rows"),
    (cut("soft_targets", slice(None), slice(2)), "has 3 classes in teacher_logits and 2 in soft_targets"),
    (lambda tensors: tensors.pop("soft_targets"), "lacks soft_targets: another version of dfkd"),
    (lambda tensors: tensors.update(labels=torch.zeros(4)), "has the unknown tensor 'labels'"),
    (
        lambda tensors: tensors.update({name: tensors[name][:3].clone() for name in tensors}),
        "holds 3 images, the manifest has 4",
    ),
    (
        lambda tensors: tensors.update(teacher_logits=torch.zeros(4, 5), soft_targets=torch.full((4, 5), 0.2)),
        "holds logits of 5 classes, the manifest has 3",
    ),
]


@pytest.mark.parametrize(("change", "fault"), HEADERS)
def test_a_wrong_header__is_found_on_opening_and_by_verify(folder, change, fault):
    edit_shard(folder, change)
    for read in (verify_transfer_set, TransferSet):
        with pytest.raises(TransferSetError, match=rf"shard-00001\.safetensors {fault}.*Make it again: dfkd"):
            read(folder)


CONTENTS = [
    (put("teacher_logits", (2, 1), float("nan")), "has NaN or Inf in teacher_logits"),
    (put("teacher_logits", 2, float("-inf")), "has NaN or Inf in teacher_logits"),
    (put("image_index", 0, 0), r"holds other images than those at positions 6 to 9 of the set \(image_index\)"),
    (lambda tensors: tensors.update(image_index=torch.arange(4)), "holds other images than those at positions 6 to 9"),
]


@pytest.mark.parametrize(("change", "fault"), CONTENTS)
def test_wrong_values__are_found_when_they_are_read_and_by_verify(folder, teacher, change, fault):
    edit_shard(folder, change)
    stored = TransferSet(folder)
    for read in (
        lambda: verify_transfer_set(folder),
        lambda: stored.teacher_logits[:],
        lambda: distill(teacher, stored, LABELLED, seed=0),
    ):
        with pytest.raises(
            TransferSetError, match=rf"Transfer set .*: shard-00001\.safetensors {fault}.*Make it again"
        ):
            read()


@pytest.mark.parametrize(
    ("value", "fault"),
    [(float("inf"), "NaN or Inf in soft_targets"), (-0.5, "not probabilities"), (1.0, "not probabilities")],
)
def test_wrong_soft_targets__are_found_when_they_are_read_and_by_verify(folder, value, fault):
    edit_shard(folder, put("soft_targets", (1, 0), value))
    stored = TransferSet(folder)
    assert stored.soft_targets[:6].shape == (6, 3)
    for read in (lambda: verify_transfer_set(folder), lambda: stored.soft_targets[torch.tensor([0, 7])]):
        with pytest.raises(TransferSetError, match=rf"shard-00001\.safetensors has .*{fault}"):
            read()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda content: content["class_histogram"].reverse(), "class_histogram that is not that of the shards"),
        (lambda content: content.update(mean_confidence=0.5), r"has the mean_confidence 0\.500000, the shards have"),
        (lambda content: content.update(target_agreement=1.0), r"has the target_agreement 1\.000000, the shards have"),
        (lambda content: content["shards"][1].update(sha256="0" * 64), r"shard-00001\.safetensors has changed"),
        (lambda content: content["shards"].reverse(), "holds other images than those at positions 0 to 3"),
    ],
)
def test_figures_of_other_shards__are_found_by_verify(folder, change, fault):
    edit_manifest(folder, change)
    with pytest.raises(TransferSetError, match=fault):
        verify_transfer_set(folder)


def test_a_copy_of_a_shard_under_another_name__is_found(folder):
    shutil.copy(folder / shard_name(0), folder / shard_name(1))
    digest = file_sha256(folder / shard_name(1))
    edit_manifest(folder, lambda content: content["shards"][1].update(sha256=digest, num_images=6))
    edit_manifest(folder, lambda content: content.update(num_images=12))
    counts = [2 * count for count in verify_histogram(folder)]
    edit_manifest(folder, lambda content: content.update(class_histogram=counts))
    for read in (verify_transfer_set, lambda folder: TransferSet(folder).images):
        with pytest.raises(TransferSetError, match="holds other images than those at positions 6 to 11"):
            read(folder)


def verify_histogram(folder):
    return read_shard(folder / shard_name(0)).teacher_logits.argmax(1).bincount(minlength=3).tolist()


def test_many_faults__are_shortened(folder):
    record = {"sha256": "0" * 64, "num_images": 1}
    for position in range(2, 12):
        name = shard_name(position)
        edit_manifest(folder, lambda content, name=name: content["shards"].append({"file": name, **record}))
    edit_manifest(folder, lambda content: content.update(num_images=20))
    edit_manifest(folder, lambda content: content["class_histogram"].__setitem__(0, content["class_histogram"][0] + 10))
    with pytest.raises(TransferSetError, match=r"shard-00006\.safetensors is missing; and 5 more\. "):
        verify_transfer_set(folder)


class TestLinks:
    """Shards of a set that somebody else packed."""

    def test_pipes_and_devices__are_refused_without_waiting(self, folder):
        (folder / shard_name(1)).unlink()
        os.mkfifo(folder / shard_name(1))
        for read in (verify_transfer_set, TransferSet):
            with pytest.raises(TransferSetError, match=r"shard-00001\.safetensors is a pipe in place of a file"):
                read(folder)
        (folder / shard_name(1)).unlink()
        (folder / shard_name(1)).symlink_to("/dev/zero")
        with pytest.raises(TransferSetError, match=r"shard-00001\.safetensors is a device in place of a file"):
            TransferSet(folder)

    def test_a_link_out_of_the_folder__is_refused(self, folder, tmp_path):
        outside = (folder / shard_name(1)).rename(tmp_path / shard_name(1))
        (folder / shard_name(1)).symlink_to(outside)
        with pytest.raises(TransferSetError, match=r"shard-00001\.safetensors is a link to .*, outside of"):
            verify_transfer_set(folder)

    @pytest.mark.parametrize("target", ["nowhere", shard_name(1)])
    def test_a_link_to_nothing_or_to_itself__is_refused(self, folder, target):
        (folder / shard_name(1)).unlink()
        (folder / shard_name(1)).symlink_to(target)
        with pytest.raises(
            TransferSetError, match=r"shard-00001\.safetensors (is a link to a file that|cannot be read)"
        ):
            TransferSet(folder)

    def test_links_of_dvc_and_a_link_to_the_folder__are_followed(self, folder, tmp_path):
        # Made by DVC with `cache.type symlink`.
        cached = tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30)
        cached.parent.mkdir(parents=True)
        (folder / shard_name(1)).rename(cached)
        (folder / shard_name(1)).symlink_to(cached)
        (tmp_path / "link").symlink_to(folder)
        assert verify_transfer_set(tmp_path / "link").num_images == 10


def test_tensors_that_share_memory__are_written(tmp_path):
    rows = torch.eye(3)
    shard = Shard(
        images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
        teacher_logits=rows,
        soft_targets=rows,
        image_index=torch.arange(9)[::3],
    )
    write_shard(tmp_path / shard_name(0), shard)
    read = read_shard(tmp_path / shard_name(0))
    assert torch.equal(read.soft_targets, rows)
    assert read.image_index.tolist() == [0, 3, 6]


def test_a_shard_of_another_form__cannot_be_made():
    good = make_shard(0, 4)
    for changes, fault in (
        ({"images": good.images.float()}, "has images of float32"),
        ({"soft_targets": good.soft_targets[:3]}, "has tensors of 3 and of 4 rows"),
        ({"image_index": good.image_index[:0]}, r"has image_index of int64 \[0\]"),
    ):
        with pytest.raises(TransferSetError, match=fault):
            dataclasses.replace(good, **changes)


def test_a_set_that_would_be_refused__is_not_written(tmp_path):
    records = [write_shard(tmp_path / shard_name(i), make_shard(0, 4)) for i in range(2)]
    with pytest.raises(TransferSetError, match=r"shard-00001\.safetensors holds other images"):
        write_manifest(
            tmp_path, method="noise", method_config={}, temperature=1.0, teacher_digest="", statistics_digest=None,
            code_version="", seed=0, shards=records,
        )  # fmt: skip
    assert not (tmp_path / MANIFEST_NAME).exists()
