"""One call of a command, and one POST to an address; neither can hold up a run for longer than its time."""

from __future__ import annotations

import http.client
import ipaddress
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from dfkd_tasks.records.foreign import reason

__all__ = ["post", "run_command"]

_LONGEST_SHOWN = 200


def run_command(words: Sequence[str], text: str, variables: Mapping[str, str], seconds: float) -> str:
    """Run a command with a text on its standard input; return what went wrong, empty if nothing did.

    Args:
        words: Program and arguments.
        text: The text.
        variables: Further environment variables.
        seconds: Time after which it is ended with all that it has started.
    """
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"it cannot be started: {reason(error)}"
    with process:
        try:
            output, _ = process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"it did not end within {seconds:g} s (notify.timeout_s)"
    if process.returncode == 0:
        return ""
    last = output.strip().splitlines()[-1:]
    return ": ".join([f"it ended with exit code {process.returncode}", *(line[:_LONGEST_SHOWN] for line in last)])


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
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"it cannot be reached: {reason(error)}"
    return ""


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
