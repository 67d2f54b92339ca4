"""The name of the present flow run, and lines in its log, beside those on the terminal."""

from __future__ import annotations

import logging

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from dfkd_flows.session.display import say
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.names import run_tags

__all__ = ["log", "logged", "note", "show_run"]

# Prefect's loggers below this name go to its server and never to the terminal.
_LOGGER = "prefect.extra.dfkd"


def show_run(name: str, params: Params) -> None:
    """Name the present flow run, and tag it with its teachers, students and data; nothing outside of a flow.

    Args:
        name: The name.
        params: Parameters of the teachers and students that it works for.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, name=name, tags=list(dict.fromkeys([*run.tags, *run_tags(params)])))
    run.name = name


def log(text: str, *, level: int = logging.INFO) -> None:
    """Write a text into the log of the present flow run; nothing outside of a flow."""
    if text.strip() and FlowRunContext.get():
        logging.getLogger(_LOGGER).log(level, text.strip("\n"))


def logged(summary: str) -> str:
    """Log the summary of a flow and return it."""
    log(summary)
    return summary


def note(text: str) -> None:
    """Print a line, indented, and log it."""
    say(f"  {text}")
    log(text)
