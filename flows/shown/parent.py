"""Stages as sub-runs of the pipeline's flow run, although they run in processes that DVC starts.

The environment carries the run's id and a digest of its server's address, no address and no key. A stage without it, or
with another server, is a run without a parent.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import Flow, State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext, hydrated_context
from prefect.exceptions import ObjectNotFound
from prefect.results import get_result_store
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from dfkd_flows.session.starter import PARENT_RUN

__all__ = ["RUNS_ON", "end_run", "end_sub_runs", "handing_over", "reason_of", "reasons_of_sub_runs", "sub_run"]


def _of_types(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=[*types]))


RUNS_ON = _of_types(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
"""The states of a run that has not ended."""

# "Flow run encountered an exception: dfkd_core.errors.DataError: No such file"
_PREFIX = re.compile(r"^Flow run encountered an exception: (?:[\w.]+: ?)?")


@contextmanager
def handing_over() -> Iterator[None]:
    """Let the processes that the block starts run their flows as sub-runs of the present flow run."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        os.environ[PARENT_RUN] = f"{context.flow_run.id}@{_server()}"
    try:
        yield
    finally:
        os.environ.pop(PARENT_RUN, None)


@contextmanager
def sub_run() -> Iterator[None]:
    """Run the flows of the block as sub-runs of the run that was handed over, if it is on the server in use."""
    parent = _parent(os.environ.pop(PARENT_RUN, ""))
    if parent is None:
        yield
        return
    # Prefect takes the task runner of a parent from its flow.
    flow = Flow(lambda: None, name="parent")
    with hydrated_context({"flow_run_context": {"flow": flow, "flow_run": parent, "result_store": get_result_store()}}):
        yield


def _parent(handed_over: str) -> FlowRun | None:
    run_id, _, server = handed_over.partition("@")
    if not run_id or server != _server():
        return None
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(run_id))
    except (ObjectNotFound, ValueError):
        return None


def _server() -> str:
    return hashlib.sha256((PREFECT_API_URL.value() or "").rstrip("/").encode()).hexdigest()[:16]


def end_sub_runs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End what counts as running below a run that was killed or cancelled; Prefect calls this as a hook of its state.

    The processes end with the run, and have no time to report it.
    """
    with get_client(sync_client=True) as client:
        _end_below(client, flow_run.id)


def end_run(client: SyncPrefectClient, run_id: UUID, message: str) -> None:
    """Let a run whose process has ended count as crashed, with what counts as running below it.

    Args:
        client: A client of the server that has the run.
        run_id: The run's id.
        message: The reason.
    """
    client.set_flow_run_state(run_id, Crashed(message=message), force=True)
    _end_below(client, run_id)


def _end_below(client: SyncPrefectClient, run_id: UUID) -> None:
    for run in _sub_runs(client, run_id, RUNS_ON):
        client.set_flow_run_state(run.id, Crashed(message="The run that started it has ended"), force=True)


def reasons_of_sub_runs() -> str:
    """Return the names of the sub-runs of the present flow run that failed, each with its reason on a line."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return ""
    with get_client(sync_client=True) as client:
        runs = _sub_runs(client, context.flow_run.id, _of_types(StateType.FAILED, StateType.CRASHED))
    return "\n".join(f"{run.name}: {reason_of(run.state)}" for run in runs if run.state)


def _sub_runs(client: SyncPrefectClient, run_id: UUID, states: FlowRunFilterState) -> list[FlowRun]:
    parent = FlowRunFilterParentFlowRunId(any_=[run_id])
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent, state=states))


def reason_of(state: State[object]) -> str:
    """Return the reason of a failed state without the words that Prefect puts in front of it."""
    return _PREFIX.sub("", state.message or state.name or "").strip()
