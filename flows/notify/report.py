"""A report on the end of a run, and its way to the command and the address of params.yaml."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from dfkd_flows.notify.calls import post, run_command
from dfkd_flows.notify.trust import is_trusted
from dfkd_flows.settings.notify import NotifyConfig, address_fault
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["Report", "send", "untrusted"]

_TOKEN = "DFKD_WEBHOOK_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run reports of one student, or of the whole if it failed before there was one."""

    event: str
    """One of `EVENTS`, or `test`."""
    state: str = ""
    """Name of the run's state in Prefect."""
    teacher: str = ""
    student: str = ""
    data: str = ""
    model: str = ""
    """Name of the registered model."""
    version: str = ""
    champion: str = ""
    """Version of the champion now."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The student's figures under their names in MLflow."""
    reasons: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Return the fields, the project's folder and the time for JSON, without figures that are no numbers."""
        figures = {name: value for name, value in self.figures.items() if math.isfinite(value)}
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return {**asdict(self), "figures": figures, "project": Path.cwd().name, "time": now}


def send(report: Report, config: NotifyConfig) -> list[str]:
    """Send a report to the command and the address, as far as they are set and allowed on this machine.

    Returns:
        What went wrong, a sentence each.
    """
    return list(_faults(json.dumps(report.content(), indent=2), report, config))


def _faults(text: str, report: Report, config: NotifyConfig) -> Iterator[str]:
    faults = untrusted(config)
    yield from faults.values()
    if config.command and "command" not in faults:
        variables = {"DFKD_EVENT": report.event, "DFKD_STUDENT": report.student, "DFKD_MODEL": report.model}
        fault = run_command(shlex.split(config.command), text, variables, config.timeout_s)
        if fault:
            yield f"notify.command, {config.command!r}: {fault}"
    if config.webhook and "webhook" not in faults:
        fault = _post(config.webhook, text, config.timeout_s)
        if fault:
            yield f"notify.webhook: {fault}"


def _post(webhook: str, text: str, seconds: float) -> str:
    address = webhook
    if webhook.startswith("$"):
        address = os.environ.get(webhook[1:], "")
        if not address:
            return f"the environment has no {webhook[1:]}. Set it before the run, or the worker, starts"
    if fault := address_fault(address):
        return f"it {fault}"
    return post(address, text, os.environ.get(_TOKEN, ""), seconds)


def untrusted(config: NotifyConfig) -> dict[str, str]:
    """Return what is set and not allowed on this machine: a sentence by the name of the setting."""
    values = {"command": config.command, "webhook": config.webhook}
    return {
        name: f"notify.{name} was never allowed on this machine, or has changed: {without_secrets(value)}. "
        "Allow it with: dfkd notify --trust"
        for name, value in values.items()
        if value and not is_trusted(name, value)
    }
