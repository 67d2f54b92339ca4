"""The Prefect server that a run uses, and telemetry; nothing is started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from dfkd_flows.doctor.findings import Finding, fault, note, ok
from dfkd_flows.session.environment import TELEMETRY_OFF
from dfkd_flows.session.server import API_URL, answers

__all__ = ["check_prefect", "check_telemetry", "without_secrets"]


def check_prefect() -> Iterator[Finding]:
    """Yield which Prefect server a run uses, a fault if that does not answer."""
    url = os.environ.get(API_URL)
    if not url:
        yield ok("prefect", "a server is started for each run")
    elif answers(url):
        yield ok("prefect", f"{without_secrets(url)} answers")
    else:
        text = f"no server answers at {API_URL}={without_secrets(url)}"
        yield fault("prefect", text, f"prefect server start (or: unset {API_URL}, and each run starts its own)")


def check_telemetry() -> Iterator[Finding]:
    """Yield whether the environment turns the telemetry of DVC, MLflow and Prefect off; dfkd has none."""
    other = [
        f"{name}={os.environ.get(name, '')}"
        for name, value in TELEMETRY_OFF.items()
        if os.environ.get(name, "").lower() != value
    ]
    if other:
        names = " ".join(text.partition("=")[0] for text in other)
        yield note("telemetry", f"may be on, as the environment has {', '.join(other)}", f"unset {names}")
    else:
        yield ok("telemetry", "off")


def without_secrets(url: str) -> str:
    """Return a URL without the user and the password in it."""
    host = urlsplit(url).netloc
    return url.replace(host, host.rpartition("@")[2], 1) if "@" in host else url
