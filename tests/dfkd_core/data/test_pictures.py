"""Folders of pictures that somebody else may have packed."""

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd_core.data.pictures import decode_picture, list_pictures
from dfkd_core.errors import DataError


def save(path, value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, dtype=np.uint8)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for position, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        save(tmp_path / "set" / name, position)
    return tmp_path / "set"


def listed(folder):
    found = list_pictures(folder)
    return [path.relative_to(folder).as_posix() for path in found.paths], found.num_repeated


class TestContent:
    @pytest.mark.parametrize("kind", ["BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
    def test_documented_formats__are_read_whatever_their_ending(self, tmp_path, kind):
        assert decode_picture(save(tmp_path / "1.png", 255, format=kind)).shape[2:] == (4, 5)

    @pytest.mark.parametrize("kind", ["MPO", "PNG", "TIFF", "WEBP"])
    def test_of_several_pictures_in_a_file__the_first_is_read(self, tmp_path, kind):
        first, second = (Image.new("RGB", (16, 8), colour) for colour in ((200, 10, 10), (10, 200, 10)))
        first.save(tmp_path / "1.jpg", format=kind, save_all=True, append_images=[second])
        with Image.open(tmp_path / "1.jpg") as picture:
            assert (picture.format, getattr(picture, "n_frames", 1)) == (kind, 2)
        red, green, _ = decode_picture(tmp_path / "1.jpg")[0].float().mean((1, 2)).tolist()
        assert red > 150 > 50 > green

    @pytest.mark.parametrize("kind", ["GIF", "ICO", "TGA", "EPS", "PCX", "SGI", "PDF"])
    def test_other_formats__are_refused_whatever_their_ending(self, tmp_path, kind):
        with pytest.raises(
            DataError, match=r"1\.png cannot be decoded: its content is none of BMP, JPEG, PNG, PPM, TIFF"
        ):
            decode_picture(save(tmp_path / "1.png", format=kind))

    def test_a_photoshop_file__is_refused(self, tmp_path):
        (tmp_path / "1.png").write_bytes(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 1, 4, 5, 8, 1) + bytes(40))
        with pytest.raises(DataError, match="its content is none of"):
            decode_picture(tmp_path / "1.png")

    def test_a_picture_of_too_many_pixels__is_refused(self, tmp_path):
        def chunk(name, content):
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
        content = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        with pytest.raises(
            DataError, match=r"1\.png cannot be decoded: Image size \(10000000000 pixels\) exceeds limit"
        ):
            decode_picture(tmp_path / "1.png")

    @pytest.mark.parametrize("kind", ["BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
    def test_damage_anywhere__names_the_file(self, tmp_path, kind):
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "1.png", format=kind)
        whole = (tmp_path / "1.png").read_bytes()
        for length in range(0, len(whole), len(whole) // 20)[:-1]:
            (tmp_path / "2.png").write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"2\.png cannot be decoded: .*Replace or delete it"):
                decode_picture(tmp_path / "2.png")


class TestLinks:
    def test_the_folder_itself__may_be_a_link(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        assert listed(tmp_path / "link") == (["cat/1.png", "cat/2.png", "dog/1.png"], 0)

    def test_links_inside_of_it__count_a_file_once(self, folder):
        for position in range(50):
            (folder / "cat" / f"0{position}.png").symlink_to("1.png")
            os.link(folder / "cat" / "2.png", folder / "cat" / f"h{position}.png")
        pictures, repeated = listed(folder)
        assert (len(pictures), repeated) == (3, 100)
        assert pictures == listed(folder)[0]

    def test_a_link_to_a_hidden_folder__is_followed(self, folder):
        (folder / "dog").rename(folder / ".dog")
        (folder / "dog").symlink_to(".dog")
        assert listed(folder) == (["cat/1.png", "cat/2.png", "dog/1.png"], 0)

    def test_equal_copies__are_separate_pictures(self, folder):
        save(folder / "cat" / "3.png", 0)
        assert listed(folder) == (["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png"], 0)

    def test_links_of_dvc__are_followed(self, folder, tmp_path):
        cached = tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30)
        cached.parent.mkdir(parents=True)
        (folder / "dog" / "1.png").rename(cached)
        (folder / "dog" / "1.png").symlink_to(cached)
        assert listed(folder) == (["cat/1.png", "cat/2.png", "dog/1.png"], 0)
        assert decode_picture(folder / "dog" / "1.png").unique().tolist() == [2]

    @pytest.mark.parametrize("link", ["cat/x.png", "dog/more", "mouse"])
    def test_links_out_of_it__are_refused_with_a_way_out(self, folder, tmp_path, link):
        outside = save(tmp_path / "outside" / "1.png")
        (folder / link).symlink_to(outside if link.endswith(".png") else outside.parent)
        with pytest.raises(DataError, match=rf"{link} is a link to .*outside.*, outside of .*cp -rL .* COPY"):
            list_pictures(folder)

    @pytest.mark.parametrize(
        ("link", "target"), [("dog/up", ".."), ("dog/cats", "../cat"), ("mouse", "cat"), ("all", ".")]
    )
    def test_links_that_put_pictures_into_two_classes__are_refused(self, folder, link, target):
        (folder / link).symlink_to(target)
        with pytest.raises(DataError, match=r"are one and the same, by a link\. Delete the wrong one"):
            list_pictures(folder)

    @pytest.mark.parametrize("target", ["../../..", "/"])
    def test_links_to_folders_around_it__are_refused(self, folder, target):
        (folder / "dog" / "up").symlink_to(target)
        with pytest.raises(DataError, match="outside of"):
            list_pictures(folder)

    def test_a_loop_in_a_class__ends(self, folder):
        (folder / "dog" / "again").symlink_to(".")
        assert listed(folder) == (["cat/1.png", "cat/2.png", "dog/1.png"], 1)

    def test_one_file_in_two_classes__is_refused(self, folder):
        os.link(folder / "cat" / "1.png", folder / "dog" / "2.png")
        with pytest.raises(DataError, match=r"cat/1\.png and .*dog/2\.png are one and the same"):
            list_pictures(folder)

    @pytest.mark.parametrize("link", ["cat/x.png", "cat/more", "mouse"])
    @pytest.mark.parametrize("target", ["gone", "itself"])
    def test_links_that_lead_nowhere__are_named(self, folder, link, target):
        (folder / link).symlink_to(Path(link).name if target == "itself" else target)
        with pytest.raises(DataError, match=f"{link} is a link that leads nowhere"):
            list_pictures(folder)


class TestFiles:
    def test_what_is_no_file__is_refused_without_waiting(self, folder, monkeypatch):
        os.mkfifo(folder / "cat" / "pipe.png")
        with pytest.raises(DataError, match=r"pipe\.png is a pipe in place of a file\. Delete it"):
            list_pictures(folder)
        (folder / "cat" / "pipe.png").unlink()
        # The path of a socket is short.
        monkeypatch.chdir(folder / "cat")
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("s.png")
        with pytest.raises(DataError, match=r"s\.png is a socket in place of a file"):
            list_pictures(folder)

    def test_a_device__is_refused(self, folder):
        (folder / "cat" / "x.png").symlink_to("/dev/zero")
        with pytest.raises(DataError, match=r"x\.png is a device in place of a file"):
            list_pictures(folder)

    def test_a_class_name_that_cannot_be_printed__is_named(self, folder):
        os.mkdir(os.fsencode(folder) + b"/\xff")
        with pytest.raises(DataError, match=r"a class with the name .*: rename it"):
            list_pictures(folder)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_class_that_cannot_be_read__is_named(self, folder):
        (folder / "dog").chmod(0)
        try:
            with pytest.raises(DataError, match="dog cannot be read: Permission denied"):
                list_pictures(folder)
        finally:
            (folder / "dog").chmod(0o700)
