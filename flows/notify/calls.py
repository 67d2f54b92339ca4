"""One call of a command, and one POST to an address; neither can hold up a run for longer than its time."""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from dfkd_tasks.processes.lifeline import kill_below
from dfkd_tasks.records.foreign import reason, without_secrets

__all__ = ["post", "run_command"]

_LONGEST_SHOWN = 200
_KEPT_BYTES = 4096
_SECONDS_TO_READ = 1.0


def run_command(words: Sequence[str], text: str, variables: Mapping[str, str], seconds: float) -> str:
    """Run a command with a text on its standard input; return what went wrong, empty if nothing did.

    Args:
        words: Program and arguments.
        text: The text.
        variables: Further environment variables.
        seconds: Time after which it is ended with all that it has started.
    """
    with tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                words,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return f"it cannot be started: {reason(error)}"
    end = _End(process)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end_all(process)
        return f"it did not end within {seconds:g} s (notify.timeout_s)"
    return ": ".join([f"it ended with exit code {status}", *end.last_line()]) if status else ""


class _End:
    """The last of what a command writes; the rest, which may be endless, is dropped.

    A thread reads it, as a process that the command leaves behind can keep the pipe open.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._last = b""
        self._thread = threading.Thread(target=self._read, args=[process.stdout], name="output", daemon=True)
        self._thread.start()

    def _read(self, stream: io.BufferedReader) -> None:
        with stream:
            while chunk := stream.read1():
                self._last = (self._last + chunk)[-_KEPT_BYTES:]

    def last_line(self) -> list[str]:
        """Return the last line for a message, or nothing."""
        self._thread.join(_SECONDS_TO_READ)
        lines = without_secrets(self._last.decode(errors="replace")).strip().splitlines()[-1:]
        return ["".join(filter(str.isprintable, line))[:_LONGEST_SHOWN] for line in lines]


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it has started, also in sessions of their own."""
    kill_below(process.pid)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def post(address: str, text: str, token: str, seconds: float) -> str:
    """Send JSON to an address with POST; return what went wrong, empty if nothing did.

    A redirect is not followed: it could lead to another host.

    Args:
        address: Begins with http:// or https://.
        text: The JSON.
        token: Bearer token, empty for none.
        seconds: Time for all of it.
    """
    host = urlsplit(address).hostname or ""
    headers = {"Content-Type": "application/json", "User-Agent": "dfkd"}
    if token:
        if not token.isascii() or not token.isprintable():
            return "DFKD_WEBHOOK_TOKEN has characters that no token has, such as a line break. Set it without them"
        if not address.startswith("https:") and not _is_here(host):
            return "the token of DFKD_WEBHOOK_TOKEN is sent by https only. Use an address that begins with https://"
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address, text.encode(), headers, method="POST")
    answers: list[str] = []
    # In a thread, as the time limit of a socket starts again with each byte.
    thread = threading.Thread(target=lambda: answers.append(_answer(request, seconds)), name="webhook", daemon=True)
    thread.start()
    thread.join(seconds)
    fault = answers[0] if answers else f"no answer within {seconds:g} s (notify.timeout_s)"
    return f"{host}: {fault}" if fault else ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Make urllib raise the redirect as an error."""


def _answer(request: urllib.request.Request, seconds: float) -> str:
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        moved = ", a redirect, which is not followed" if 300 <= error.code < 400 else ""
        return f"the answer is {error.code}{moved}"
    except urllib.error.URLError as error:
        return f"it cannot be reached: {reason(error.reason) if isinstance(error.reason, OSError) else error.reason}"
    except OSError as error:
        return f"it cannot be reached: {reason(error)}"
    except (ValueError, http.client.HTTPException):
        # Their texts repeat the address, a header, or what the server has sent.
        return "it cannot be used, or its answer is not HTTP"
    return ""


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
