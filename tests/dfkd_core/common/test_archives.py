import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dfkd_core.common.archives import check_npz, check_safetensors, check_zip
from dfkd_core.common.json_files import parse_json
from dfkd_core.common.regular_files import open_regular, read_regular, unchanged

ANY = ".+"


def zip_of(*members, comment=b"", compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.comment = comment
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def local_header(name=b"b", content=b"two"):
    fields = (b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(content), len(content), len(content), len(name), 0)
    return struct.pack("<4s5H3L2H", *fields) + name + content


PLAIN = zip_of(("a", b"one"), ("b", b"two"))


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        zip_of(("a/b/c.json", b"{}" * 999), ("a/d", b""), compression=zipfile.ZIP_DEFLATED),
        zip_of(),
        zip_of(("grün/ü", b"one")),
    ],
)
def test_check_zip__accepts_what_a_zip_program_writes(content):
    names = check_zip(io.BytesIO(content), members=ANY).namelist()
    assert names == zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_check_zip__accepts_what_torch_and_numpy_write(tmp_path):
    network = torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), tmp_path / "state.pth")
    torch.jit.script(network).save(tmp_path / "net.pt")
    np.savez(tmp_path / "plain.npz", a=np.zeros(3), b=np.array(["x"]))
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros((100, 28, 28), np.uint8))
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", npy(np.arange(3)))
    (tmp_path / "streamed.npz").write_bytes(stream.getvalue())
    for path in tmp_path.iterdir():
        with path.open("rb") as stream:
            check_zip(stream, members=ANY)
    for path in tmp_path.glob("*.npz"):
        with path.open("rb") as stream:
            check_npz(stream)
            assert "a" in np.load(stream)


class Unseekable(io.BytesIO):
    """Makes zipfile write the sizes of a member after it."""

    def seekable(self):
        return False

    def tell(self):
        raise OSError


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_two_of_one_name():
    return zip_of(("a", b"one"), ("b", b"two")).replace(b"b", b"a")


def with_names_that_differ_in_case():
    return zip_of(("a", b"one"), ("A", b"two"))


def with_bytes_in_front():
    return b"#!/bin/sh\n" + PLAIN


def with_bytes_in_front_and_fitting_offsets():
    """As zipfile appends to a file that exists: every offset is right, and the archive does not begin the file."""
    stream = io.BytesIO(b"another file")
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("a", b"one")
    return stream.getvalue()


def with_bytes_behind():
    return PLAIN + b"more"


def with_a_comment():
    return zip_of(("a", b"one"), comment=b"more")


def with_an_archive_in_the_comment():
    return zip_of(("a", b"one"), comment=zip_of(("b", b"two")))


def with_two_archives():
    return PLAIN + PLAIN


def with_a_member_outside_the_directory():
    header = local_header(b"c", b"three")
    start = PLAIN.index(b"PK\x01\x02")
    end = bytearray(PLAIN[start:])
    struct.pack_into("<L", end, len(end) - 6, start + len(header))
    return PLAIN[:start] + header + bytes(end)


def with_another_name_in_the_header():
    return PLAIN[:30] + b"c" + PLAIN[31:]


def with_another_size_in_the_header():
    return PLAIN[:18] + struct.pack("<L", 2) + PLAIN[22:]


def with_another_checksum_in_the_header():
    return PLAIN[:14] + b"\0\0\0\0" + PLAIN[18:]


def with_another_method_in_the_header():
    return PLAIN[:8] + b"\x08\0" + PLAIN[10:]


def with_overlapping_members():
    first = PLAIN.index(b"PK\x01\x02")
    second = PLAIN.index(b"PK\x01\x02", first + 1)
    return PLAIN[: second + 42] + struct.pack("<L", 0) + PLAIN[second + 46 :]


def with_another_number_of_members():
    return PLAIN[:-14] + struct.pack("<2H", 1, 1) + PLAIN[-10:]


def with_an_encrypted_member():
    first = PLAIN.index(b"PK\x01\x02")
    return PLAIN[:6] + b"\x01\0" + PLAIN[8 : first + 8] + b"\x01\0" + PLAIN[first + 10 :]


def with_a_path_out_of_it():
    return zip_of(("../a", b"one"))


def with_an_absolute_path():
    return zip_of(("/etc/a", b"one"))


def with_a_second_name():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.extra = struct.pack("<2H", 0x7075, 5) + b"\x01\0\0\0\0"
        archive.writestr(info, b"one")
    return stream.getvalue()


def with_a_bomb():
    content = bytearray(zip_of(("a", bytes(9999)), compression=zipfile.ZIP_DEFLATED))
    for place in (22, content.index(b"PK\x01\x02") + 24):
        struct.pack_into("<L", content, place, 2**30)
    return bytes(content)


def that_is_cut_off():
    return PLAIN[:-5]


def that_is_none():
    return b"PK\x03\x04 nothing"


TRICKS = [value for name, value in list(globals().items()) if name.startswith(("with_", "that_"))]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_check_zip__refuses_an_archive(trick):
    with pytest.raises(ValueError, match=r"^[A-Za-z]"):
        check_zip(io.BytesIO(trick()), members=ANY)


def test_check_zip__refuses_every_change_of_a_header():
    """Whatever byte that says where things are or what they are called is changed, the archive has two meanings."""
    found = []
    for place in [*range(30), *range(PLAIN.index(b"PK\x01\x02"), len(PLAIN))]:
        changed = PLAIN[:place] + bytes([PLAIN[place] ^ 1]) + PLAIN[place + 1 :]
        try:
            check_zip(io.BytesIO(changed), members=ANY)
            found.append(place)
        except ValueError:
            pass
    first = PLAIN.index(b"PK\x01\x02")
    second = PLAIN.index(b"PK\x01\x02", first + 1)
    # Versions, times and rights, which no reader of ours uses.
    harmless = [4, 5, 10, 11, 12, 13]
    for start in (first, second):
        harmless += [start + byte for byte in (4, 5, 6, 7, 12, 13, 14, 15, 36, 37, 38, 39, 40, 41)]
    assert set(found) <= set(harmless)


def test_check_zip__names_a_member_that_is_not_expected():
    with pytest.raises(ValueError, match="unexpected member 'b'"):
        check_zip(io.BytesIO(PLAIN), members="a")


def test_check_npz__compares_shape_and_size():
    for content, message in (
        (npy(np.zeros(3))[:-8], r"has 16 bytes for shape \(3,\) of float64"),
        (npy(np.zeros(3)) + b"more", "has 28 bytes"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(9999999999999,)"), "bytes for shape"),
        (b"no array", "magic"),
    ):
        with pytest.raises(ValueError, match=message):
            check_npz(io.BytesIO(zip_of(("a.npy", content))))


def safetensors_of(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, end, shape=None):
    return {"dtype": "U8", "shape": shape or [end - start], "data_offsets": [start, end]}


def test_check_safetensors__accepts_what_the_library_writes():
    tensors = {"b": torch.zeros(3, 2), "a": torch.ones(0), "c": torch.zeros(5, dtype=torch.bool), "d": torch.tensor(1)}
    content = save(tensors, {"key": "value"})
    header = check_safetensors(io.BytesIO(content))
    assert header.metadata == {"key": "value"}
    assert set(header.names) == load(content).keys() == tensors.keys()
    assert header.names.index("d") < header.names.index("b") < header.names.index("c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2)), "the key 'a' twice"),
        (safetensors_of(b'{"a":%s,"\\u0061":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2)), "the key 'a' twice"),
        (safetensors_of({"a": entry(0, 4), "b": entry(5, 8)}), "'b' does not begin where the one before ends"),
        (safetensors_of({"a": entry(0, 5), "b": entry(4, 8)}), "'b' does not begin where the one before ends"),
        (safetensors_of({"a": entry(0, 8)}, bytes(9)), "have 8 bytes, the file has 9"),
        (safetensors_of({"a": entry(0, 8)}, bytes(7)), "have 8 bytes, the file has 7"),
        (safetensors_of({"a": entry(0, 8, [9])}), r"has 8 bytes for shape \[9\] of U8"),
        (safetensors_of({"a": entry(0, 8, [-2, -4])}), "malformed"),
        (safetensors_of({"a": {**entry(0, 8), "more": 1}}), "has not the fields"),
        (safetensors_of({"a": {**entry(0, 8), "dtype": "X8"}}), "malformed"),
        (safetensors_of({"a": entry(0, 8), "__metadata__": {"x": 1}}), "metadata"),
        (safetensors_of([]), "no JSON object"),
        (safetensors_of(b"{" * 100_000), "JSON|nested|Expecting"),
        (struct.pack("<Q", 2**60) + b"{}", "header would have"),
        (b"short", "cut off"),
    ],
)
def test_check_safetensors__refuses(content, message):
    with pytest.raises(ValueError, match=message):
        check_safetensors(io.BytesIO(content))


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"b": {"a": 1, "\\u0061": 2}}', "NaN", "[1e999]", "-Infinity", "[" * 10**5, b"\xff", ""],
)
def test_parse_json__refuses_what_readers_disagree_on(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_open_regular__opens_no_pipe_and_no_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link") == b"content"
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="is not a regular file"):
            open_regular(path)


def test_unchanged__notices_another_file_of_the_same_name(tmp_path):
    for name in ("file", "other"):
        (tmp_path / name).write_bytes(b"content")
    with unchanged(tmp_path / "file") as stream:
        assert stream.read() == b"content"
    with pytest.raises(ValueError, match="changed while it was read"), unchanged(tmp_path / "file"):
        (tmp_path / "other").replace(tmp_path / "file")
