"""One stage as a command: server, progress, timing and Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import torch

from dfkd_core.errors import ConfigError
from flows.session.display import Display, say
from flows.session.lifeline import end_with_callers
from flows.session.server import await_server, start_server
from flows.settings.params import Params
from flows.settings.trust import allow
from tasks.caching.code import code_digest
from tasks.records.progress import listening
from tasks.records.timing import clear_seconds, stage_seconds

__all__ = ["STAGES", "run_flow", "run_stage"]

STAGES = {
    "teacher": ("flows.stages.teacher", "teacher"),
    "statistics": ("flows.stages.statistics", "statistics"),
    "synthesize": ("flows.stages.synthesis", "synthesize"),
    "distill": ("flows.stages.distillation", "distill"),
    "evaluate": ("flows.stages.evaluation", "evaluate"),
}
"""Module and flow of each stage, in the order of dvc.yaml. A module is imported when its stage runs."""

_SECONDS_TO_END = 5.0


def run_stage(name: str, params: Params) -> None:
    """Run the flow of the stage `name`.

    Raises:
        ConfigError: There is no such stage.
        DfkdError: The stage's input has a fault.
    """
    if name not in STAGES:
        raise ConfigError(f"No stage {name!r}. Stages: {', '.join(STAGES)}")
    allow(params, ())
    module, function = STAGES[name]
    torch.set_num_threads(params.execution.num_threads)
    run_flow(name, module, function, params)


def run_flow(stage: str, module: str, function: str, *arguments: Any) -> None:
    """Run a flow with a server, a progress display and an orderly Ctrl-C.

    Args:
        stage: Its name in the output and in the timing.
        module: Module of the flow, which is imported while the server starts.
        function: Name of the flow in it.
        *arguments: Arguments of the flow.
    """
    say(f"{stage}:")
    end_with_callers()
    server = start_server()
    # Kept for later. Python 3.11 sometimes fails to parse code while a thread of Prefect does, through `inspect`.
    code_digest(stage)
    flow = getattr(import_module(module), function)
    await_server(server)
    with _interruptible(), Display(stage) as display, listening(display.show):
        clear_seconds(stage)
        summary = flow(*arguments)
    measured = stage_seconds(stage)
    say(f"  {summary} ({measured[0]:.1f} s)" if measured else f"  {summary} (reused)")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C end the worker processes at once, and this process if Prefect does not end in time."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        timer = threading.Timer(_SECONDS_TO_END, os._exit, [130])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
