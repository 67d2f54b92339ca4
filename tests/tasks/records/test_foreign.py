"""What messages show of a service: never a password, and the cause in place of a library's calls."""

from __future__ import annotations

import errno
import json

import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.records.foreign import is_foreign, reason, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:1/a", "https://host:1/a"),
        ("postgresql+psycopg2://me:se@cret@host/db", "postgresql+psycopg2://host/db"),
        ("No answer at http://me:secret@host/x?a=1 (Caused by b)", "No answer at http://host/x?a=1 (Caused by b)"),
        ("two: ssh://me:secret@a/x and s3://k:secret@b", "two: ssh://a/x and s3://b"),
        ("https://store.net/set?sv=1&sig=secret&se=2", "https://store.net/set?sv=1&sig=***&se=2"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
        ("AccountName=a;AccountKey=secret;", "AccountName=a;AccountKey=***;"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_without_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert "secret" not in without_secrets(text)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError("HTTPConnectionPool(host='h', port=9): Max retries exceeded with url: /api/2.0 (Caused by "
                    "NewConnectionError('<urllib3.HTTPConnection object at 0x7>: Failed to establish a new connection: "
                    "[Errno 111] Connection refused'))"),
            "Failed to establish a new connection: [Errno 111] Connection refused",
        ),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (DfkdError("http://me:secret@h is away\nlong"), "http://h is away"),
        (ValueError("It is off. See https://docs.net/a for more."), "It is off"),
        (ValueError(), "ValueError"),
    ],
)  # fmt: skip
def test_reason(error: Exception, text: str) -> None:
    assert reason(error) == text


def test_is_foreign__tells_services_from_bugs() -> None:
    foreign = (ConnectionError(), ModuleNotFoundError("boto3"), json.JSONDecodeError("", "", 0))
    assert all(map(is_foreign, foreign))
    assert not any(map(is_foreign, (TypeError(), KeyError(), DfkdError("ours"))))
