"""One stage as a command: server, progress, timing and the reasons of a failure from outside."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from dfkd_core.errors import ConfigError
from dfkd_flows.session.display import Display, say
from dfkd_flows.session.server import needing_server, start_server
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.trust import allow
from dfkd_flows.stages.names import TEACHER_STAGES, label
from dfkd_tasks.caching.code import code_digest
from dfkd_tasks.processes.worker import needing_workers
from dfkd_tasks.records.progress import listening
from dfkd_tasks.records.timing import clear_seconds, keep_seconds, stage_seconds

__all__ = ["STAGES", "run_flow", "run_stage"]

STAGES = {
    "teacher": ("dfkd_flows.stages.teacher", "teacher"),
    "statistics": ("dfkd_flows.stages.statistics", "statistics"),
    "synthesize": ("dfkd_flows.stages.synthesis", "synthesize"),
    "distill": ("dfkd_flows.stages.distillation", "distill"),
    "evaluate": ("dfkd_flows.stages.evaluation", "evaluate"),
}
"""Module and flow of each stage, in the order of dvc.yaml. A module is imported when its stage runs."""


def run_stage(stage: str, name: str | None, params: Params) -> None:
    """Run the flow of a stage for one teacher or student.

    Args:
        stage: A key of `STAGES`.
        name: Name of the teacher or, for the last two stages, of the student; None takes the only one.
        params: Parameters of the project.

    Raises:
        ConfigError: There is no such stage, teacher or student.
        DfkdError: The stage's input has a fault.
    """
    if stage not in STAGES:
        raise ConfigError(f"No stage {stage!r}. Stages: {', '.join(STAGES)}")
    if stage in TEACHER_STAGES:
        name = params.the_teacher(name, f"dfkd stage {stage} NAME")
        own = params.for_teacher(name)
    else:
        name = params.the_student(name, f"dfkd stage {stage} NAME")
        own = params.for_student(name)
    allow(params, ())
    module, function = STAGES[stage]
    torch.set_num_threads(params.execution.num_threads)
    address = f"{stage}@{name}"
    clear_seconds(address)
    run_flow(stage, module, function, own, words=label(address, params))
    keep_seconds(stage, address)


def run_flow(stage: str, module: str, function: str, *arguments: Any, words: str = "") -> None:
    """Run a flow with a server and a progress display.

    Args:
        stage: Its name in the timing.
        module: Module of the flow, which is imported while the server starts.
        function: Name of the flow in it.
        *arguments: Arguments of the flow.
        words: Its name in the output; that of the stage if empty.

    Raises:
        DfkdError: The input has a fault, or the server or a worker was ended from outside.
    """
    words = words or stage
    say(f"{words}:")
    server = start_server()
    # Kept for later. Python 3.11 sometimes fails to parse code while a thread of Prefect does, through `inspect`.
    code_digest(stage)
    flow = getattr(import_module(module), function)
    from dfkd_flows.shown.parent import sub_run

    server.wait()
    clear_seconds(stage)
    with needing_server(server), needing_workers(), Display(words) as display, listening(display.show), sub_run():
        summary = flow(*arguments)
    measured = stage_seconds(stage)
    say(f"  {summary} ({measured[0]:.1f} s)" if measured else f"  {summary} (reused)")
