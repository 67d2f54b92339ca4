"""What archives of PyTorch may hold: no compiled code, and calls of PyTorch's operators alone.

torch.export turns parts of a `.pt2` file into Python code and looks names up in Python modules, so a file made for it
could run anything. Each such part is checked before the file is loaded.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from dfkd_core.common.archives import check_zip
from dfkd_core.common.json_files import parse_json

__all__ = ["check_exported", "check_saved", "check_script"]

_NOTES = r"\.(format_version|storage_alignment|data/(serialization_id|version))"
_COMMON = rf"(archive_)?version|archive_format|byteorder|{_NOTES}"
_WEIGHTS = r"data/weights/(weight_\d+|model_weights_config\.json|model\.pt)"
_CONSTANTS = r"data/constants/(tensor_\d+|model_constants_config\.json|model\.pt)"
_EXPORTED = rf"[^/]+/({_COMMON}|models/model\.json|{_WEIGHTS}|{_CONSTANTS}|data/sample_inputs/model\.pt|extra/.+)"
# What torch.export wrote before PyTorch 2.8.
_EARLIER = (
    r"version|serialized_(exported_program\.json|(state_dict|constants)\.(pt|json)|example_inputs\.pt)|extra_files/.+"
)
_SCRIPT = rf"[^/]+/({_COMMON}|(data|constants|traced_inputs)(\.pkl|/\d+)|code/.+\.py(\.debug_pkl)?|extra/.+)"
_SAVED = rf"[^/]+/({_COMMON}|data\.pkl|data/\d+)"

_SYMBOL = r"Symbol\('\w+'|[A-Z][A-Za-z]*|[su]\d+|positive|integer|nonnegative"
_FORMULA = re.compile(rf"(?:{_SYMBOL}|[\d\s()+\-*/,=<>])*")
_LONGEST_FORMULA = 2000
# A power of powers of small numbers already fills the memory.
_POWER = re.compile(r"\*\*|Pow")
_MOST_POWERS = 4

_NAME = re.compile(r"[A-Za-z_]\w*|")
# Python code is made of addresses, between double quotes.
_ADDRESS = re.compile(r"[^\"'\\\x00-\x1f\x7f]*")
_OPERATOR = re.compile(r"torch\.ops(\.\w+){2,3}")
_SYMBOLIC = re.compile(
    r"torch\.sym_\w+|torch\._sym_\w+|math\.[a-z]\w*|"
    r"_operator\.(getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift)"
)
# Operators that read or write files.
_FILE_OPERATORS = ("from_file", "load_tensor", "save")
_SCRIPT_FILES = re.compile(rf"\b({'|'.join(_FILE_OPERATORS)})\s*\(")


def check_exported(content: bytes) -> None:
    """Check a `.pt2` archive.

    Raises:
        ValueError: It could be read in two ways, holds compiled code, pickled objects or members that torch.export does
            not write, or a part of it that becomes Python code is not a formula, a name or an operator.
    """
    archive = check_zip(io.BytesIO(content), members=f"{_EXPORTED}|{_EARLIER}")
    if not all(re.fullmatch(_EARLIER, name) for name in archive.namelist()):
        _in_one_folder(archive)
    for name in archive.namelist():
        if name.endswith(".json"):
            document = parse_json(archive.read(name))
            if name.endswith("_config.json"):
                _check_payload(document)
            _check_document(document)


def _check_payload(document: Any) -> None:
    """Check the table of weights or constants: all must be tensors."""
    for entry in document["config"].values():
        if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError(
                f"it holds pickled objects ({entry['path_name'][:60]}), which would run code of its author"
            )


def _check_document(content: Any, field: str = "") -> None:
    """Check each text in a JSON document by the field that holds it, and each key."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not _ADDRESS.fullmatch(key):
                raise ValueError(f"its name {key[:60]!r} is not an address")
            _check_document(value, key)
    elif isinstance(content, list):
        for item in content:
            _check_document(item, field)
    elif isinstance(content, str) and field in _CHECKS:
        is_right, wanted = _CHECKS[field]
        if not is_right(content):
            raise ValueError(f"its {field} {content[:60]!r} is not {wanted}")


def _is_formula(text: str) -> bool:
    is_short = len(text) <= _LONGEST_FORMULA and len(_POWER.findall(text)) <= _MOST_POWERS
    return is_short and bool(_FORMULA.fullmatch(text))


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text))


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text))


def _is_plain_structure(text: str) -> bool:
    # An enumeration is imported from the module that the text names, and could be hidden by an escape.
    return "__enum__" not in text and "\\u" not in text


def _is_operator(text: str) -> bool:
    """Return whether a text names an operator of PyTorch or arithmetic on sizes, and no other function of Python."""
    if _SYMBOLIC.fullmatch(text):
        return True
    if not _OPERATOR.fullmatch(text):
        return False
    _, _, space, *path = text.split(".")
    found: Any = getattr(torch.ops, space, None)
    if not isinstance(found, _SPACES) or path[0] in _FILE_OPERATORS:
        return False
    for part in path:
        # An operator that this PyTorch does not have stays a text, which torch.export refuses.
        found = getattr(found, part, None) if isinstance(found, (*_SPACES, torch._ops.OpOverloadPacket)) else None
    return found is None or isinstance(found, torch._ops.OperatorBase | torch._ops.OpOverloadPacket)


_SPACES = (torch._ops._OpNamespace, torch._ops._HigherOrderNamespace)
_Check = Callable[[str], bool]
_CHECKS: dict[str, tuple[_Check, str]] = {
    "expr_str": (_is_formula, "a formula"),
    **dict.fromkeys(("target", "as_operator"), (_is_operator, "an operator of PyTorch")),
    **dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names"), (_is_name, "a name")),
    **dict.fromkeys(("fqn", "parameter_name", "buffer_name", "tensor_constant_name"), (_is_address, "an address")),
    **dict.fromkeys(("in_spec", "out_spec"), (_is_plain_structure, "a structure of plain containers")),
}


def check_saved(stream: BinaryIO) -> None:
    """Check a file of torch.save that should hold tensors.

    Args:
        stream: The whole file; it stays open and is at its start afterwards.

    Raises:
        ValueError: It is an archive that could be read in two ways or holds more than torch.save writes.
    """
    is_archive = stream.read(4) == b"PK\x03\x04"
    if is_archive:
        _in_one_folder(check_zip(stream, members=_SAVED))
    elif zipfile.is_zipfile(stream):
        raise ValueError("there are bytes before the archive in it")
    stream.seek(0)


def _in_one_folder(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    if len({name.partition("/")[0] for name in archive.namelist()}) > 1:
        raise ValueError("its members are not in one folder")
    return archive


def check_script(content: bytes) -> None:
    """Check a TorchScript archive.

    Raises:
        ValueError: It could be read in two ways, has members that torch.jit.save does not write, or calls operators
            that read or write files.
    """
    archive = _in_one_folder(check_zip(io.BytesIO(content), members=_SCRIPT))
    for name in archive.namelist():
        if name.endswith(".py") and (found := _SCRIPT_FILES.search(archive.read(name).decode("utf-8"))):
            raise ValueError(f"it calls {found.group(1)}, which reads or writes files")
