"""Small JSON files of a project: notes, which a run can do without, and results, which it cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dfkd_core.common.regular_files import read_regular
from dfkd_core.errors import DfkdError

__all__ = ["read_note", "read_result"]

T = TypeVar("T")


def read_note(path: Path, kind: type[T]) -> T | None:
    """Return what a note holds; None if it is missing or damaged, so that it is written again.

    Args:
        path: A file in `.dfkd`.
        kind: Type of its content, for example a dataclass.
    """
    try:
        return _read(path, kind)
    except (OSError, ValidationError):
        return None


def read_result(path: Path, kind: type[T]) -> T:
    """Return what a file of results holds.

    Args:
        path: An output of a stage.
        kind: Type of its content.

    Raises:
        DfkdError: It is missing or damaged.
    """
    try:
        return _read(path, kind)
    except FileNotFoundError:
        raise DfkdError(f"There are no results yet: {path} is missing. Make them with: dfkd run") from None
    except OSError as error:
        reason = error.strerror or "it is no regular file"
        raise DfkdError(f"{path} cannot be read: {reason}. Make it again with: rm -r {path}; dfkd run") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise DfkdError(f"{path} is damaged: {reason}. Make it again with: dfkd run") from None


def _read(path: Path, kind: type[T]) -> T:
    read: T = _adapter(kind).validate_json(read_regular(path))  # type: ignore[arg-type]  # a type is hashable
    return read


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
