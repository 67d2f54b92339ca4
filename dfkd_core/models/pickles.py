"""Files of torch.save: read without running code of their author, or unpickled if the user trusts the author.

The safe way is PyTorch's own reader for untrusted files (`weights_only=True`). Classes that it does not allow, such as
the options of a training script next to the weights, become empty containers instead of an error: nothing of such a
class is imported or called. Arrays of NumPy are read from their bytes, since NumPy's own reader trusts its input.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dfkd_core.common.regular_files import open_regular
from dfkd_core.errors import TeacherError, first_line
from dfkd_core.models.factories import look_here
from dfkd_core.models.program_checks import check_saved

__all__ = ["PlainContent", "attributes_of", "more_than_tensors", "read_plain_file", "unpickle"]

_MISSING = "No weights file {path}. Correct teacher.source.weights"
# A file can contain itself in itself; weights are never deeper.
_DEPTH = 8
# Pickles in the format before zip files: magic number, version, system, content.
_PICKLES = 4
_SHOWN_BYTES = 24
_NUMBERS = re.compile(r"[biufc]\d{1,2}")
_LIBRARIES = ("torch.", "numpy.", "builtins.", "collections.", "functools.")
_NO_LIST = re.compile(r"Can only (?:append to|extend) lists, but got <class '(.+)'>")


@dataclass(frozen=True, slots=True)
class PlainContent:
    """What a file holds, without its objects of other classes."""

    value: Any
    """Tensors, numbers, text and containers."""
    replaced: tuple[str, ...]
    """Names of the classes and functions that were replaced by empty containers, sorted."""


def read_plain_file(path: Path) -> PlainContent:
    """Read a file of `torch.save` onto the CPU and run no code of its author.

    Raises:
        TeacherError: It is missing, corrupt, or cannot be read without running code.
    """
    foreign: set[str] = set()
    try:
        with open_regular(path) as stream:
            check_saved(stream)
            foreign = _foreign_names(stream) - {name for _, name in _NUMPY}
            value = _loaded(stream, foreign)
    except FileNotFoundError:
        raise TeacherError(_MISSING.format(path=path)) from None
    except pickle.UnpicklingError as error:
        raise TeacherError(_refusal(path, str(error), sorted(foreign))) from None
    except EOFError:
        raise TeacherError(f"{path} is not a complete file of torch.save: it ends too early. Copy it again") from None
    except Exception as error:  # a damaged file can fail anywhere in the reader
        if foreign and isinstance(error, (TypeError, ValueError, AttributeError)):
            # A container in the place of an object cannot do what the object can, such as be a key.
            raise TeacherError(more_than_tensors(path, sorted(foreign))) from None
        raise TeacherError(f"{path} is not a complete file of torch.save: {first_line(error)}. Copy it again") from None
    return PlainContent(_converted(value, _DEPTH), tuple(sorted(foreign)))


def unpickle(path: Path) -> Any:
    """Read a file of `torch.save` onto the CPU, which runs any code in it: only for files that the user trusts.

    Raises:
        TeacherError: It is missing or corrupt, or needs a module that cannot be imported.
    """
    look_here()
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise TeacherError(_MISSING.format(path=path)) from None
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"{path} needs the module {error.name!r}, which defines its class. Install its package, put it into the "
            "project's folder, or add its folder to PYTHONPATH"
        ) from None
    # Unpickling runs code that can raise any exception, or end the process.
    except (Exception, SystemExit) as error:
        raise TeacherError(
            f"{path} cannot be unpickled: {type(error).__name__}: {first_line(error, longest=None)}"
        ) from error


def _loaded(stream: BinaryIO, foreign: set[str]) -> Any:
    """Return the content of a file with stand-ins for its own classes."""
    lists = {"collections.deque"}
    while True:
        allowed = [*_NUMPY, *((_EmptyList if name in lists else _stand_in(name), name) for name in foreign)]
        try:
            with warnings.catch_warnings(), safe_globals(allowed):
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # Only the operations of the file show which classes are lists.
            found = _NO_LIST.search(str(error))
            if found is None or found[1] not in foreign - lists:
                raise
            lists.add(found[1])
            stream.seek(0)


def _foreign_names(stream: BinaryIO) -> set[str]:
    """Return the classes and functions that a file names and that PyTorch's reader does not allow."""
    try:
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            return set(get_unsafe_globals_in_checkpoint(stream))
        stream.seek(0)
        return set(_globals_of_old_file(stream))
    except Exception:  # the reader itself reports what is wrong with the file
        return set()
    finally:
        stream.seek(0)


def _globals_of_old_file(stream: BinaryIO) -> list[str]:
    found = []
    for _ in range(_PICKLES):
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                found.append(f"{module}.{name}")
    return found


def _refusal(path: Path, text: str, foreign: list[str]) -> str:
    """Return the message for a file that PyTorch's reader refuses."""
    if "Unsupported operand" in text:
        if start := _start_of_other_file(path):
            return f"{path} is no file of torch.save: it begins with {start!r}. Copy or download it again"
        return (
            f"{path} holds more than tensors, or was saved with another pickle_protocol than torch.save's own, and "
            "reading it would run code of its author. Request a state dict (torch.save(model.state_dict(), PATH)), or, "
            "if you trust the file as you would trust a program from the same source, add --trust-pickle"
        )
    if "must be imported to load" in text:
        return f"{path} holds tensors that are spread over several machines or nested. Gather them before torch.save"
    named = re.search(r"GLOBAL (\S+)", text)
    if named or "weights_only" in text.lower():
        return more_than_tensors(path, [named[1]] if named else foreign or ["objects of other classes"])
    return f"{path} is not a complete file of torch.save: {text.splitlines()[0][:200]}. Copy it again"


def _start_of_other_file(path: Path) -> bytes:
    """Return the first bytes of a file that is neither a zip nor a pickle, for example a web page; else none."""
    with open_regular(path) as stream:
        if zipfile.is_zipfile(stream):
            return b""
        stream.seek(0)
        try:
            deque(pickletools.genops(stream), maxlen=0)
        except Exception:  # any content may be there
            stream.seek(0)
            return stream.read(_SHOWN_BYTES)
    return b""


def more_than_tensors(path: Path, classes: list[str]) -> str:
    """Return the message for a file whose weights are inside objects of other classes."""
    own = [name for name in classes if not name.startswith(_LIBRARIES)] or classes
    shown = ", ".join(own[:3]) + (", ..." if len(own) > 3 else "")
    return (
        f"{path} holds more than tensors ({shown}), and reading it would run code of its author. Request a state dict "
        "(torch.save(model.state_dict(), PATH)), or, if you trust the file as you would trust a program from the same "
        "source, add --trust-pickle"
    )


class _Fillable(type):
    """Makes a class equal to Counter, one of the few types whose items PyTorch's reader sets."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Counter

    __hash__ = type.__hash__


class _StandIn(dict[Any, Any], metaclass=_Fillable):
    """Replaces an object or the result of a call: an empty container that can be filled, and be a key."""

    def __new__(cls, *arguments: Any, **options: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        # With slots, the state is a pair or a list of the fields' values.
        for part in state if isinstance(state, tuple) else (state,):
            values = dict(enumerate(part)) if isinstance(part, (list, tuple)) else part
            if isinstance(values, Mapping):
                vars(self).update({str(name): value for name, value in values.items()})

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]  # dict sets it to None
        return id(self)

    def __repr__(self) -> str:
        return type(self).__qualname__


def _stand_in(name: str) -> type[_StandIn]:
    """Return a class that replaces the class or function of that name."""
    return type(name, (_StandIn,), {"__module__": "builtins"})


class _EmptyList:
    """Replaces a class whose items are appended."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return []


class _Type:
    """Replaces numpy.dtype."""

    def __init__(self, code: str = "", *options: Any) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def numbers(self, raw: bytes) -> np.ndarray[Any, Any]:
        """Return bytes as numbers [m] in the byte order of this machine."""
        if not isinstance(self._code, str) or not _NUMBERS.fullmatch(self._code) or self._order not in ("<", ">", "|"):
            raise ValueError("no numbers")
        stored = np.dtype(self._code).newbyteorder(self._order)  # type: ignore[arg-type]  # one of three signs
        return np.frombuffer(raw, stored).astype(stored.newbyteorder("="))


class _Array:
    """Replaces numpy.ndarray; holds its parts until all of the file is read."""

    def __setstate__(self, state: Any) -> None:
        _, self._shape, self._dtype, self._is_fortran, self._raw = state

    def tensor(self) -> Any:
        """Return the numbers as a tensor, None if they are text or objects."""
        try:
            numbers = self._dtype.numbers(self._raw)
            return torch.from_numpy(numbers.reshape(self._shape, order="F" if self._is_fortran else "C").copy())
        except (AttributeError, TypeError, ValueError):
            return None


def _array(*arguments: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    """Return a number of NumPy as one of Python, None if it is none."""
    try:
        return dtype.numbers(raw)[0].item()
    except (AttributeError, TypeError, ValueError, IndexError):
        return None


# The module of NumPy 1 and of NumPy 2.
_NUMPY: list[Any] = [
    (_Type, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _converted(value: Any, depth: int) -> Any:
    """Return the value with tensors in place of NumPy's arrays."""
    if isinstance(value, _Array):
        return value.tensor()
    if depth and isinstance(value, list):
        return [_converted(item, depth - 1) for item in value]
    if depth and isinstance(value, Mapping) and not attributes_of(value):
        return {name: _converted(item, depth - 1) for name, item in value.items()}
    return value


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes that the file sets on a replaced object."""
    return dict(vars(value)) if isinstance(value, _StandIn) else {}
