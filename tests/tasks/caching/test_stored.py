from dataclasses import dataclass
from pathlib import Path

import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.stored import read_note, read_result

DAMAGED = [
    b"",
    b'{"name": "a", "si',
    b"[1, 2]",
    b'"text"',
    b'{"name": 3, "size": 1}',
    b'{"name": "a"}',
    b"\xff\xfe",
    b"[" * 9999,
]


@dataclass(frozen=True, slots=True)
class Note:
    name: str
    size: float


def test_read__what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text('{"name": "a", "size": 2, "of a later version": []}')
    assert read_note(path, Note) == read_result(path, Note) == Note("a", 2)


@pytest.mark.parametrize("content", DAMAGED)
def test_read__damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(content)
    assert read_note(path, Note) is None
    with pytest.raises(DfkdError, match=r"note\.json is damaged: .*Make it again with: dfkd run"):
        read_result(path, Note)


def test_read__no_file(tmp_path: Path) -> None:
    assert read_note(tmp_path / "none", Note) is None
    assert read_note(tmp_path, Note) is None
    with pytest.raises(DfkdError, match=r"none is missing\. Make them with: dfkd run"):
        read_result(tmp_path / "none", Note)
    with pytest.raises(DfkdError, match="cannot be read: it is no regular file"):
        read_result(tmp_path, Note)
