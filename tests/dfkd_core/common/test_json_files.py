import os

import pytest

from dfkd_core.common.json_files import read_json_object


def test_an_object__is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, "ä", null, true], "b": {}}', encoding="utf-8")
    assert read_json_object(tmp_path / "x.json") == {"a": [1, 2.5, "ä", None, True], "b": {}}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1} {}', "Extra data"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[1]", "it holds a list in place of an object"),
        (b"null", "it holds null in place of an object"),
        (b"true", "it holds true or false in place"),
        (b'"a"', "it holds a text in place"),
        (b'{"a": 1, "a": 2}', "it has the key 'a' twice"),
        (b'{"b": {"a": 1, "a": 1}}', "it has the key 'a' twice"),
        (b'{"a": NaN}', "it holds NaN, which is not JSON"),
        (b'{"a": -Infinity}', "it holds -Infinity, which is not JSON"),
        (b'{"a": 1e999}', "its number 1e999 is too large"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_other_content__is_a_value_error_that_describes_it(tmp_path, content, fault):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        read_json_object(tmp_path / "x.json")


def test_a_file_that_is_none__is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="is not a regular file"):
            read_json_object(place)
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "nowhere")
