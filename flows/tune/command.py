"""`dfkd tune`: the work before and after its flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfkd_core.errors import ConfigError
from dfkd_flows.session.display import say
from dfkd_flows.session.one_run import only_run
from dfkd_flows.session.server import needing_server, start_server
from dfkd_flows.settings.settling import planned, settle
from dfkd_flows.stages.command import run_flow
from dfkd_flows.tune.space import search_space

__all__ = ["tune_all"]


def tune_all(
    preset: str | None,
    settings: Sequence[str],
    *,
    student: str | None = None,
    minutes: float,
    trials: int | None = None,
    apply: bool = False,
) -> None:
    """Search for better settings than those of params.yaml, show the result and, with `apply`, write it.

    Args:
        preset: Preset that params.yaml is set to first.
        settings: Changes made after it.
        student: Name of the student to improve; None takes the only one.
        minutes: Time budget of the search in minutes.
        trials: Largest number of settings to try, including those of an interrupted search.
        apply: Write settings that are clearly better into params.yaml.

    Raises:
        DfkdError: The input has a fault, and params.yaml is as it was; or a stage failed.
    """
    _check_budget(minutes, trials)
    with only_run():
        with planned(preset, settings, students=[student] if student else ()) as plan:
            name = plan.params.the_student(student, "--student NAME")
            params = plan.params.for_student(name)
            search_space(params)
            settle(plan, with_evaluation=False)
        for change in plan.shown():
            say(f"  {change}")
        server = start_server()
        # Imported while the server starts.
        from dfkd_flows.tune.flow import make_inputs
        from dfkd_flows.tune.results import apply_best, open_search, render

        server.wait()
        with needing_server(server):
            make_inputs(params.teacher_name)
        torch.set_num_threads(params.execution.num_threads)
        run_flow("tune", "dfkd_flows.tune.flow", "tune", params, minutes, trials)
        search = open_search(params)
        say(render(search, plan.params, name))
        if apply:
            apply_best(search, plan.params, name)


def _check_budget(minutes: float, trials: int | None) -> None:
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes must be a number greater than 0, got {minutes:g}. Try: dfkd tune --minutes 10")
    if trials is not None and trials < 1:
        raise ConfigError(
            f"--trials must be at least 1, got {trials}. Leave it out to search until the end of the time budget"
        )
