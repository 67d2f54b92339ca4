"""The Prefect server that a run uses, and telemetry; nothing is started."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dfkd_core.errors import DfkdError
from dfkd_flows.doctor.findings import Finding, fault, note, ok
from dfkd_flows.session.environment import TELEMETRY_OFF
from dfkd_flows.session.server import answers
from dfkd_flows.session.services import check_server, described_server
from dfkd_tasks.processes.background import log_of, running

__all__ = ["check_background", "check_prefect", "check_telemetry"]


def check_prefect() -> Iterator[Finding]:
    """Yield which Prefect server a run uses, a fault if that cannot take one."""
    try:
        check_server()
    except DfkdError as error:
        text, _, remedy = str(error).rpartition(". ")
        yield fault("prefect", text, remedy)
    else:
        yield ok("prefect", described_server())


def check_background() -> Iterator[Finding]:
    """Yield which services of `dfkd up` run, and a fault for each that runs and does not answer."""
    found = {name: service for name in ("prefect", "worker", "mlflow") if (service := running(name))}
    for name, service in found.items():
        if not answers(service.url):
            text = f"{name} of `dfkd up` does not answer at {service.url}; its log is {log_of(name)}"
            yield fault("services", text, "dfkd up")
    addresses = ", ".join(f"{name} {service.url}" for name, service in found.items())
    text = f"in the background: {addresses}" if found else "none in the background; `dfkd up` starts them"
    yield ok("services", text)


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
