"""Flow runs whose process was killed with all that could report it: they would count as running for ever."""

from __future__ import annotations

from typing import Any

from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from dfkd_flows.session.run_notes import hold, of_ended
from dfkd_flows.shown.parent import RUNS_ON, end_run
from dfkd_tasks.caching.workspace import STATE

__all__ = ["end_lost_runs", "hold_run"]


def hold_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Note a run of this process, and end those that were lost; Prefect calls this as a hook when a flow begins.

    A sub-run has no note: it ends with the run that started it.
    """
    if STATE.is_dir() and flow_run.parent_task_run_id is None:
        end_lost_runs()
        hold(flow_run.id)


def end_lost_runs() -> None:
    """Let runs of the project count as crashed whose process has ended, on the server in use."""
    notes = of_ended()
    if not notes:
        return
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[*notes]), state=RUNS_ON)
        for run in client.read_flow_runs(flow_run_filter=chosen):
            end_run(client, run.id, "Its process was killed, or the machine stopped")
    for path in notes.values():
        path.unlink(missing_ok=True)
