"""Files from others, read once, and refused if two programs could read different things in them.

The formats: zip archives (programs and weights of PyTorch, .npz) and safetensors. Nothing is unpacked to disk.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from dfkd_core.common.json_files import parse_json

__all__ = [
    "SafetensorsHeader",
    "check_npz",
    "check_safetensors",
    "check_zip",
]

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ZIP_64, _UNICODE_PATH = 0x0001, 0x7075
_HAS_DESCRIPTOR, _IS_UTF_8 = 0x0008, 0x0800
# The bits that say how strongly a member is compressed, that its sizes follow it, and that its name is UTF-8.
_KNOWN_FLAGS = 0x0002 | 0x0004 | _HAS_DESCRIPTOR | _IS_UTF_8
_DESCRIPTORS = ("<3L", "<4s3L", "<L2Q", "<4sL2Q")

# Deflate shrinks real data by less; an archive of zeros reaches 1,000.
_LARGEST_RATIO = 200
_ALWAYS_ALLOWED_BYTES = 2**28

_LARGEST_HEADER_BYTES = 100_000_000
_TYPES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
}
_BITS = {name: bits for bits, names in _TYPES_BY_BITS.items() for name in names.split()}


def check_zip(stream: BinaryIO, *, members: str) -> zipfile.ZipFile:
    """Check that an archive can be read in one way only, and return it.

    It has no bytes before, between and after its members and its directory; the directory and the members' own headers
    agree; no two names are equal, also not in lower case; and no member is encrypted or a compression bomb.

    Args:
        stream: The whole archive; it stays open.
        members: Regular expression that each name matches.

    Raises:
        ValueError: One of these does not hold, or it is not a zip archive.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(str(error)) from None
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    size = stream.seek(0, io.SEEK_END)
    directory = _directory_start(stream, size, len(infos))
    _check_names(infos, re.compile(members))
    if (infos[0].header_offset if infos else directory) != 0:
        raise ValueError("there are bytes before its first member")
    for info, end in zip(infos, [*(info.header_offset for info in infos[1:]), directory]):
        _check_member(stream, info, end)
    _check_ratio(infos, size)
    return archive


def _directory_start(stream: BinaryIO, size: int, num_members: int) -> int:
    """Return the offset of the directory, after a check that it ends the archive and counts its members."""
    last = size - _END.size
    signature, disk, first_disk, here, total, length, start, comment = _END.unpack(_read(stream, last, _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("there are bytes after its end")
    counts: tuple[int, ...] = (here, total, length, start)
    if last >= _LOCATOR_64.size and _read(stream, last - _LOCATOR_64.size, 4) == b"PK\x06\x07":
        last, wide = _wide_end(stream, last - _LOCATOR_64.size)
        full = (_FULL_16, _FULL_16, _FULL_32, _FULL_32)
        if any(narrow not in (most, value) for narrow, most, value in zip(counts, full, wide)):
            raise ValueError("the two records of its end differ")
        counts = wide
    here, total, length, start = counts
    if disk or first_disk or here != total or total != num_members or start + length != last:
        raise ValueError("its directory is not where its end says, or has another number of members")
    for _ in range(num_members):
        entry = _ENTRY.unpack(_read(stream, start, _ENTRY.size))
        start += _ENTRY.size + sum(entry[10:13])
    if start != last:
        raise ValueError("the entries of its directory do not fill it")
    return last - length


def _wide_end(stream: BinaryIO, locator: int) -> tuple[int, tuple[int, ...]]:
    """Return the offset of the record of the end with 64-bit numbers, and the numbers."""
    _, disk, position, num_disks = _LOCATOR_64.unpack(_read(stream, locator, _LOCATOR_64.size))
    if disk or num_disks != 1 or position + _END_64.size != locator:
        raise ValueError("the record of its end is not where the directory says")
    fields = _END_64.unpack(_read(stream, position, _END_64.size))
    if fields[0] != b"PK\x06\x06" or fields[1] != _END_64.size - 12 or fields[4] or fields[5]:
        raise ValueError("the record of its end is malformed")
    return position, fields[6:]


def _check_names(infos: list[zipfile.ZipInfo], members: re.Pattern[str]) -> None:
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        # Some readers ignore case when they look for a member.
        if name.casefold() in seen:
            raise ValueError(f"it has two members {name!r}")
        seen.add(name.casefold())
        parts = name.split("/")
        if name != info.filename or "\\" in name or not all(part not in ("", ".", "..") for part in parts):
            raise ValueError(f"the name of its member {name!r} is not a plain path")
        if not members.fullmatch(name):
            raise ValueError(f"it has an unexpected member {name!r}")


def _check_member(stream: BinaryIO, info: zipfile.ZipInfo, end: int) -> None:
    """Compare a member's own header with the directory."""
    if info.flag_bits & ~_KNOWN_FLAGS or info.volume:
        raise ValueError(f"its member {info.filename!r} is encrypted or of a kind that is not read")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its member {info.filename!r} is compressed by another method than deflate")
    fields = _LOCAL.unpack(_read(stream, info.header_offset, _LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, plain, name_length, extra_length = fields
    name = stream.read(name_length)
    extra = _extra_fields(stream.read(extra_length))
    written = info.orig_filename.encode("utf-8" if info.flag_bits & _IS_UTF_8 else "cp437")
    if signature != b"PK\x03\x04" or name != written or flags != info.flag_bits or method != info.compress_type:
        raise ValueError(f"the header of its member {info.filename!r} and its directory differ")
    _extra_fields(info.extra)
    count = len(extra.get(_ZIP_64, b"")) // 8
    wide = list(struct.unpack_from(f"<{count}Q", extra.get(_ZIP_64, b"")))
    plain = wide.pop(0) if plain == _FULL_32 and wide else plain
    packed = wide.pop(0) if packed == _FULL_32 and wide else packed
    if any(wide):
        raise ValueError(f"the header of its member {info.filename!r} has sizes that it does not need")
    told, known = (crc, packed, plain), (info.CRC, info.compress_size, info.file_size)
    rest = end - (info.header_offset + _LOCAL.size + name_length + extra_length + info.compress_size)
    if flags & _HAS_DESCRIPTOR:
        is_right = told in (known, (0, 0, 0)) and _is_descriptor(_read(stream, end - max(rest, 0), max(rest, 0)), known)
    else:
        is_right = told == known and rest == 0
    if not is_right or (method == zipfile.ZIP_STORED and info.compress_size != info.file_size):
        raise ValueError(f"the sizes of its member {info.filename!r} in its header and in its directory differ")


def _extra_fields(data: bytes) -> dict[int, bytes]:
    """Return the fields after a member's name by their number; each may be there once, and none may rename it."""
    found: dict[int, bytes] = {}
    place = 0
    while place + 4 <= len(data):
        number, length = struct.unpack_from("<2H", data, place)
        if number in (_ZIP_64, _UNICODE_PATH) and (number in found or number == _UNICODE_PATH):
            raise ValueError("a member has two names or two sizes")
        found[number] = data[place + 4 : place + 4 + length]
        place += 4 + length
    if len(found.get(_ZIP_64, b"")) % 8 and len(found[_ZIP_64]) % 8 != 4:
        raise ValueError("the size of a member is malformed")
    return found


def _is_descriptor(data: bytes, known: tuple[int, int, int]) -> bool:
    """Return whether the bytes after a member repeat its checksum and its sizes."""
    for form in _DESCRIPTORS:
        if struct.calcsize(form) == len(data):
            fields: tuple[Any, ...] = struct.unpack(form, data)
            if fields[-3:] == known and (len(fields) == 3 or fields[0] == b"PK\x07\x08"):
                return True
    return False


def _check_ratio(infos: list[zipfile.ZipInfo], size: int) -> None:
    plain = sum(info.file_size for info in infos)
    if plain > max(_ALWAYS_ALLOWED_BYTES, _LARGEST_RATIO * size):
        raise ValueError(f"it has {size:,} bytes and would unpack to {plain:,}")


def _read(stream: BinaryIO, position: int, length: int) -> bytes:
    if position < 0:
        raise ValueError("it is cut off")
    stream.seek(position)
    data = stream.read(length)
    if len(data) != length:
        raise ValueError("it is cut off")
    return data


def check_npz(stream: BinaryIO) -> None:
    """Check that an .npz archive can be read in one way only, and that its arrays are as large as they say.

    Args:
        stream: The whole archive; it stays open and is at its start afterwards.

    Raises:
        ValueError: As `check_zip`, or a member is no array of plain numbers or text or has another size.
    """
    archive = check_zip(stream, members=r".+\.npy")
    for info in archive.infolist():
        try:
            with archive.open(info) as member:
                shape, dtype = _array_header(member, info.filename)
                length = info.file_size - member.tell()
        # NumPy evaluates the header as Python, and zlib has an error of its own.
        except (RecursionError, MemoryError, OverflowError, TypeError, SyntaxError, struct.error, zlib.error) as error:
            raise ValueError(f"the header of {info.filename} cannot be read ({type(error).__name__})") from None
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"{info.filename} has {length:,} bytes for shape {shape} of {dtype}")
    stream.seek(0)


def _array_header(member: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} is no array of plain numbers")
    shape, _, dtype = readers[version](member)
    if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return shape, dtype


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file says of itself."""

    metadata: dict[str, str]
    names: tuple[str, ...]
    """Names of its tensors, in the order of their bytes."""


def check_safetensors(stream: BinaryIO) -> SafetensorsHeader:
    """Check that a safetensors file can be read in one way only, and return its header.

    Its header has each key once, its tensors follow each other without gaps, and the last one ends the file.

    Args:
        stream: The whole file; it stays open and is at its start afterwards.

    Raises:
        ValueError: One of these does not hold.
    """
    size = stream.seek(0, io.SEEK_END)
    (length,) = struct.unpack("<Q", _read(stream, 0, 8))
    if length > min(size - 8, _LARGEST_HEADER_BYTES):
        raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
    header = parse_json(_read(stream, 8, length))
    stream.seek(0)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    places = sorted(_tensor_place(name, entry) for name, entry in header.items())
    start = 0
    for first, last, name in places:
        if first != start:
            raise ValueError(f"its tensor {name!r} does not begin where the one before ends")
        start = last
    if start != size - 8 - length:
        raise ValueError(f"its tensors have {start:,} bytes, the file has {size - 8 - length:,} for them")
    return SafetensorsHeader(metadata, tuple(name for _, _, name in places))


def _tensor_place(name: str, entry: Any) -> tuple[int, int, str]:
    """Return where a tensor begins and ends, after a check that it has the size that its shape says."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its tensor {name!r} has not the fields dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or entry["dtype"] not in _BITS:
        raise ValueError(f"its tensor {name!r} has a malformed type, shape or place")
    first, last = offsets
    if math.prod(shape) * _BITS[entry["dtype"]] != 8 * (last - first):
        raise ValueError(f"its tensor {name!r} has {last - first:,} bytes for shape {shape} of {entry['dtype']}")
    return first, last, name


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
