import os
from pathlib import Path

import pytest
import torch

from dfkd_core.common.output_folders import check_output_folder
from dfkd_core.errors import ConfigError, TransferSetError
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, verify_transfer_set, write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard
from dfkd_core.transfer_set.target import check_target, replacing_set


def store(folder, num_shards=1, value=0):
    images = torch.full((4, 1, 8, 8), value, dtype=torch.uint8)
    logits = torch.eye(4)
    records = []
    for index in range(num_shards):
        positions = torch.arange(4 * index, 4 * index + 4)
        shard = Shard(images=images, teacher_logits=logits, soft_targets=logits, image_index=positions)
        records.append(write_shard(folder / shard_name(index), shard))
    return write_manifest(
        folder, method="noise", method_config={}, temperature=1.0, teacher_digest="", statistics_digest=None,
        code_version="", seed=0, shards=records,
    )  # fmt: skip


def replace(folder, **what):
    with replacing_set(folder) as staged:
        store(staged, **what)


def fail_after_storing(folder):
    store(folder, num_shards=2)
    raise KeyError("nothing")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_and_an_empty_folder__are_filled(tmp_path):
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        folder.parent.mkdir(exist_ok=True)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        check_target(folder)
        replace(folder)
        assert names(folder) == [MANIFEST_NAME, shard_name(0)]
        assert verify_transfer_set(folder).num_images == 4


def test_an_earlier_set__is_replaced_and_files_beside_it_stay(tmp_path):
    store(tmp_path, num_shards=3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "more").mkdir()
    check_target(tmp_path)
    replace(tmp_path, num_shards=2, value=9)
    assert names(tmp_path) == [MANIFEST_NAME, "more", "notes.txt", shard_name(0), shard_name(1)]
    assert verify_transfer_set(tmp_path).num_images == 8


def test_a_failure__leaves_the_earlier_set_and_no_new_folder(tmp_path):
    before = store(tmp_path / "old")
    for folder in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(KeyError, match="nothing"), replacing_set(folder) as staged:
            fail_after_storing(staged)
    assert verify_transfer_set(tmp_path / "old") == before
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == [MANIFEST_NAME, shard_name(0)]


def test_the_remains_of_a_killed_command__are_no_obstacle_and_are_deleted(tmp_path):
    with replacing_set(tmp_path / "set") as staged:
        store(staged)
        # No process has this number.
        remains = staged.name.replace(str(os.getpid()), "999999999")
    (tmp_path / "killed" / remains).mkdir(parents=True)
    (tmp_path / "killed" / remains / shard_name(0)).write_text("half")
    check_target(tmp_path / "killed")
    replace(tmp_path / "killed")
    assert names(tmp_path / "killed") == [MANIFEST_NAME, shard_name(0)]


@pytest.mark.parametrize("num_moves", range(4))
@pytest.mark.parametrize("earlier", [0, 3])
def test_a_set_whose_files_were_only_partly_moved__is_finished(tmp_path, monkeypatch, num_moves, earlier):
    if earlier:
        store(tmp_path, num_shards=earlier, value=9)
    replace_file = Path.replace
    moved: list[Path] = []

    def stop(path, target):
        if Path(target).parent == tmp_path and path.parent != tmp_path:
            if len(moved) == num_moves:
                raise KeyboardInterrupt
            moved.append(path)
        return replace_file(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        # As the manifest is moved last, all are moved with the third.
        if num_moves < 3:
            with pytest.raises(KeyboardInterrupt):
                replace(tmp_path, num_shards=2)
        else:
            replace(tmp_path, num_shards=2)
    check_target(tmp_path)
    assert names(tmp_path) == [MANIFEST_NAME, shard_name(0), shard_name(1)]
    assert not TransferSet(tmp_path).images[:].any()
    assert verify_transfer_set(tmp_path).num_images == 8


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "", '{"name": "a web application", "icons": []}', '{"format_version": 2}', '{"format_version": 9}'],
)
def test_a_folder_with_another_manifest__is_not_emptied(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_text(content)
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty, and .*manifest\.json .*\. Give a new or an empty folder"):
        check_target(tmp_path)


def test_a_folder_without_a_manifest__is_not_emptied(tmp_path):
    (tmp_path / shard_name(0)).write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty and not a transfer set\. Give a new or an empty folder"):
        check_target(tmp_path)


def test_a_set_whose_shards_are_not_its_own__is_not_replaced(tmp_path):
    store(tmp_path, num_shards=2)
    (tmp_path / shard_name(1)).write_text("mine")
    with pytest.raises(
        ConfigError, match=r"changed since it was made \(shard-00001\.safetensors has changed.*Delete it"
    ):
        check_target(tmp_path)
    (tmp_path / shard_name(1)).unlink()
    with pytest.raises(ConfigError, match=r"shard-00001\.safetensors is missing"):
        check_target(tmp_path)


def test_a_file_that_a_larger_set_would_replace__is_named(tmp_path):
    store(tmp_path)
    (tmp_path / shard_name(7)).write_text("mine")
    with pytest.raises(ConfigError, match=r"holds shard-00007\.safetensors, which is not part of the transfer set"):
        check_target(tmp_path)


def test_links__lead_to_the_folder_that_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    check_target(tmp_path / "link")
    replace(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == [MANIFEST_NAME, shard_name(0)]
    # The files of others stay, whatever leads to them.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("mine")
    (tmp_path / "other").symlink_to("photos")
    with pytest.raises(ConfigError, match="is not empty and not a transfer set"):
        check_target(tmp_path / "other")


def test_a_shard_that_is_a_link__is_replaced_and_its_file_stays(tmp_path):
    store(tmp_path / "set")
    cached = tmp_path / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    before = (tmp_path / "set" / shard_name(0)).rename(cached).read_bytes()
    (tmp_path / "set" / shard_name(0)).symlink_to(cached)
    check_target(tmp_path / "set")
    replace(tmp_path / "set", value=9)
    assert cached.read_bytes() == before
    assert not (tmp_path / "set" / shard_name(0)).is_symlink()


def test_places_that_cannot_be_written__are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for place, fault in (
        ("file", "is not a folder"),
        ("file/below/it", "cannot be made: .*file is not a folder"),
        ("nowhere", "is a link to .*gone, which does not exist"),
        ("loop", "cannot be used"),
        ("n" * 300, "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=f"{fault}.* Give another folder"):
            check_target(tmp_path / place)
        with pytest.raises(ConfigError, match=fault), replacing_set(tmp_path / place):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("folder", ["/proc/x", "/proc", "/proc/x/y"])
def test_a_file_system_without_new_files__is_named(folder: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{folder} .*(/proc takes no files|is read-only)"):
        check_output_folder(Path(folder))


def test_the_check_of_a_folder__leaves_nothing(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new" / "set")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write__is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="is read-only for this user"):
            check_target(tmp_path / "new")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk__leaves_the_earlier_set(tmp_path):
    before = store(tmp_path)
    with pytest.raises(TransferSetError, match=r"Cannot write .*No space left"), replacing_set(tmp_path):
        raise OSError(28, "No space left on device")
    assert verify_transfer_set(tmp_path) == before


@pytest.mark.parametrize("state", ["complete", "moving"])
def test_a_folder_that_only_has_the_name_of_a_killed_commands_files__changes_nothing(tmp_path, state):
    for name, text in (("a.jpg", "mine"), (shard_name(0), "mine"), (MANIFEST_NAME, "mine")):
        (tmp_path / name).write_text(text)
    fake = tmp_path / f".dfkd-{state}-4000000-x"
    fake.mkdir()
    for name in ("a.jpg", MANIFEST_NAME, shard_name(0)):
        (fake / name).write_text("other")
    for plan in (None, '{"new": {}, "old": {}}', '{"new": {"a.jpg": "0"}, "old": {"../x": "0"}}', "[", "[]"):
        if plan is not None:
            (fake / ".plan.json").write_text(plan)
        with pytest.raises(ConfigError):
            check_target(tmp_path)
        assert [(tmp_path / name).read_text() for name in ("a.jpg", shard_name(0), MANIFEST_NAME)] == ["mine"] * 3
