import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from dfkd_core.data.pictures import picture_pixels
from dfkd_core.data.user_images import fingerprint, open_file, open_folder
from dfkd_core.errors import DataError

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
COLOURS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def read_all(raw):
    return torch.cat(list(raw.read(list(range(len(raw.labels))))))


def save_picture(path, pixels=IMAGES[0], mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)


def write(path, images=IMAGES, labels=(0, 1, 2), **more):
    arrays = {"images": np.asarray(images), "labels": np.asarray(labels), **more}
    np.savez(path, **arrays)
    return path


class TestFolder:
    def test_classes_are_the_sorted_folders_and_pictures_are_found_at_any_depth(self, tmp_path):
        save_picture(tmp_path / "b" / "2.png")
        save_picture(tmp_path / "b" / "below" / "1.PNG", COLOURS[0])
        save_picture(tmp_path / "a" / "x.bmp", IMAGES[1])
        save_picture(tmp_path / ".hidden" / "x.png")
        save_picture(tmp_path / "a" / "._x.png")
        (tmp_path / "a" / "notes.txt").touch()
        raw = open_folder(tmp_path)
        assert raw.class_names == ("a", "b")
        assert raw.labels.tolist() == [0, 1, 1]
        grey, second, colour = raw.read([0, 1, 2])
        assert grey.tolist() == [[IMAGES[1].tolist()]]
        assert second.tolist() == [[IMAGES[0].tolist()]]
        assert torch.equal(colour, torch.from_numpy(COLOURS[:1]).permute(0, 3, 1, 2))

    def test_modes_become_grey_or_rgb(self):
        pixels = Image.fromarray(COLOURS[0])
        assert picture_pixels(pixels.convert("RGBA"), "x").shape == (1, 3, 4, 5)
        assert picture_pixels(pixels.convert("P"), "x").shape == (1, 3, 4, 5)
        assert picture_pixels(pixels.convert("LA"), "x").shape == (1, 1, 4, 5)
        assert picture_pixels(Image.fromarray(IMAGES[0] > 9), "x").unique().tolist() == [0, 255]
        with pytest.raises(DataError, match=r"x has more than 8 bits per channel \(mode I;16\)"):
            picture_pixels(Image.fromarray(IMAGES[0].astype(np.uint16)), "x")

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"No folder .*nowhere\. Set data\.dataset to folder:PATH"):
            open_folder(tmp_path / "nowhere")
        with pytest.raises(DataError, match="holds no folders"):
            open_folder(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"empty holds no pictures \(\.bmp"):
            open_folder(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
    def test_a_corrupt_picture_is_named_when_it_is_read(self, tmp_path, content):
        good, bad = tmp_path / "a" / "good.png", tmp_path / "a" / "bad.png"
        save_picture(good, np.tile(IMAGES[0], (20, 20)))
        bad.write_bytes(good.read_bytes()[:-40] if content == "cut" else content)
        raw = open_folder(tmp_path)
        with pytest.raises(DataError, match=r"bad\.png cannot be decoded: .*Replace or delete it"):
            read_all(raw)

    def test_links_that_were_left_out_are_noted(self, tmp_path):
        save_picture(tmp_path / "a" / "1.png")
        assert open_folder(tmp_path).notes == ()
        (tmp_path / "a" / "2.png").symlink_to("1.png")
        raw = open_folder(tmp_path)
        assert (len(raw.labels), raw.notes) == (1, ("left out 1 link to pictures that already count",))

    def test_fingerprint_changes_with_a_picture(self, tmp_path):
        save_picture(tmp_path / "a" / "1.png")
        before = fingerprint(tmp_path)
        assert fingerprint(tmp_path) == before
        os.utime(tmp_path / "a" / "1.png", (1, 1))
        changed = fingerprint(tmp_path)
        save_picture(tmp_path / "a" / "2.png")
        assert len({before, changed, fingerprint(tmp_path)}) == 3


class TestFile:
    @pytest.mark.parametrize(
        ("images", "expected"),
        [
            (IMAGES, IMAGES[:, None]),
            (IMAGES[..., None], IMAGES[:, None]),
            (IMAGES[:, None], IMAGES[:, None]),
            (COLOURS, COLOURS.transpose(0, 3, 1, 2)),
            (COLOURS.transpose(0, 3, 1, 2), COLOURS.transpose(0, 3, 1, 2)),
            (IMAGES / 255, IMAGES[:, None]),
            ((IMAGES / 255).astype(np.float16), IMAGES[:, None]),
            ((IMAGES / 255).astype(">f4"), IMAGES[:, None]),
        ],
    )
    def test_layouts_and_types(self, tmp_path, images, expected):
        labels = range(len(images))
        raw = open_file(write(tmp_path / "x.npz", images, labels))
        assert read_all(raw).dtype == torch.uint8
        assert torch.equal(read_all(raw), torch.from_numpy(expected.copy()))
        assert raw.labels.tolist() == list(labels)
        assert raw.class_names == ()
        if np.asarray(images).dtype.isnative:
            arrays = {"images": np.ascontiguousarray(images), "labels": np.arange(len(images), dtype=np.int16)}
            save_file(arrays, tmp_path / "x.safetensors")
            assert torch.equal(read_all(open_file(tmp_path / "x.safetensors")), read_all(raw))

    def test_class_names_come_along(self, tmp_path):
        names = ["zero", "one", "two"]
        assert open_file(write(tmp_path / "x.npz", class_names=np.array(names))).class_names == tuple(names)
        arrays: dict[str, np.ndarray] = {"images": IMAGES, "labels": np.arange(3)}
        save_file(arrays, tmp_path / "x.safetensors", metadata={"class_names": json.dumps(names)})
        assert open_file(tmp_path / "x.safetensors").class_names == tuple(names)
        save_file(arrays, tmp_path / "x.safetensors", metadata={"class_names": "zero, one"})
        with pytest.raises(DataError, match="must be a JSON list of strings, got 'zero, one'"):
            open_file(tmp_path / "x.safetensors")
        with pytest.raises(DataError, match=r"class_names in .* must be a list of strings, got int64"):
            open_file(write(tmp_path / "x.npz", class_names=np.arange(3)))
        with pytest.raises(DataError, match="has 2 class names and the label 2"):
            open_file(write(tmp_path / "x.npz", class_names=np.array(names[:2])))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": [0.0, 1.0, 2.5]}, "labels in .* are float64: they must be integers"),
            ({"labels": [0.0, 1.0, np.nan]}, "labels in .* are float64: they must be integers"),
            ({"labels": [0.0, 1.0, 1e300]}, "labels in .* are float64: they must be integers"),
            ({"labels": [True, False, True]}, "labels in .* are bool"),
            ({"labels": [0, -1, 2]}, "go down to -1: classes are counted from 0"),
            ({"labels": [[0, 1], [1, 0], [0, 1]]}, r"labels in .* have shape \(3, 2\)"),
            ({"labels": [[[0]], [[1]], [[2]]]}, r"labels in .* have shape \(3, 1, 1\)"),
            ({"labels": [0, 1]}, "3 images and 2 labels"),
            ({"labels": ["a", "b", "c"]}, "labels in .* has type <U1"),
            ({"images": IMAGES.astype(np.int64)}, "are int64: they must be uint8, or floats"),
            ({"images": IMAGES.astype(np.float32)}, "floats from 0 to 59: they must be in"),
            ({"images": np.full((3, 4, 5), np.nan)}, "floats from nan to nan"),
            ({"images": IMAGES[0]}, r"have shape \(4, 5\)"),
            ({"images": np.zeros((3, 4, 5, 2), np.uint8)}, "c must be 1 or 3"),
            ({"images": np.zeros((3, 3, 8, 3), np.uint8)}, "the axis of the channels is ambiguous"),
            ({"images": IMAGES[:0]}, r"have shape \(0, 4, 5\)"),
        ],
    )
    def test_wrong_arrays_are_named(self, tmp_path, changes, message):
        with pytest.raises(DataError, match=message):
            open_file(write(tmp_path / "x.npz", **changes))

    @pytest.mark.parametrize(
        "labels",
        [[[0], [1], [2]], [0.0, 1.0, 2.0], np.array([[0], [1], [2]], np.float32), np.arange(3, dtype=np.uint64)],
    )
    def test_labels_in_a_column_or_as_whole_floats(self, tmp_path, labels):
        raw = open_file(write(tmp_path / "x.npz", labels=labels))
        assert (raw.labels.dtype, raw.labels.tolist()) == (torch.int64, [0, 1, 2])

    def test_nothing_is_unpickled(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "exploded"),)

        path = write(tmp_path / "x.npz", labels=np.array([Bomb(), 1, 2], dtype=object))
        with pytest.raises(DataError, match=r"Object arrays cannot be loaded.* nothing is unpickled"):
            open_file(path)
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_files_that_are_none(self, tmp_path, suffix):
        path = tmp_path / f"x{suffix}"
        with pytest.raises(DataError, match="No file "):
            open_file(path)
        os.mkfifo(path)
        with pytest.raises(DataError, match="is not a regular file"):
            open_file(path)
        path.unlink()
        path.write_bytes(b"no file of arrays")
        with pytest.raises(DataError, match=r"cannot be read|not a complete safetensors file"):
            open_file(path)

    def test_a_single_array_and_missing_ones(self, tmp_path):
        with (tmp_path / "x.npz").open("wb") as stream:
            np.save(stream, IMAGES)
        with pytest.raises(DataError, match=r"is not an \.npz file"):
            open_file(tmp_path / "x.npz")
        np.savez(tmp_path / "x.npz", images=IMAGES)
        with pytest.raises(DataError, match="has no labels"):
            open_file(tmp_path / "x.npz")
