"""What messages and tables show of services: addresses without passwords, and the reason of a failure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dfkd_core.errors import DfkdError

__all__ = ["is_foreign", "naming", "reason", "without_secrets"]

# Up to the last @ before the path: a password may contain one.
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
# Of a query (Azure's `sig`, a driver's `sslpassword`) and of a connection string.
_SECRET = re.compile(r"((?:password|passwd|pwd|secret|token|key|sig|signature|credential)=)[^&;\s'\"]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return a text without the users and passwords in its addresses.

    Args:
        text: An address, or a message with addresses in it.
    """
    return _SECRET.sub(r"\1***", _USER.sub("", text))


def is_foreign(error: BaseException) -> bool:
    """Return whether an error is of a service or of a library that speaks to it, and no bug of ours."""
    module = type(error).__module__
    return isinstance(error, (OSError, ImportError)) or not module.startswith(("builtins", "dfkd_"))


@contextmanager
def naming(service: str) -> Iterator[None]:
    """Turn an error of a service in the block, or of a library that speaks to it, into a sentence that names it.

    Raises:
        DfkdError: In place of such an error; all others are raised as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DfkdError) or not is_foreign(error):
            raise
        raise DfkdError(f"{service}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the first line of an error's text, without passwords and without the calls of libraries."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    first = str(text).splitlines()[0]
    # "HTTPConnectionPool(...): Max retries exceeded with url: /api (Caused by X('...: Connection refused'))"
    cause = re.search(r"Caused by \w+\((?:.*?: )?['\"]?(.*?)['\"]?\)+$", first)
    # Without what follows the first sentence: advice of the library.
    return without_secrets(cause[1] if cause else first).strip().partition(". ")[0].rstrip(".")
