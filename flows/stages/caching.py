"""Options of the flows, and the check of a cached result before it is used."""

from __future__ import annotations

from typing import Any

from prefect import Task

from dfkd_core.common.compute import Compute
from dfkd_core.common.devices import resolve_device
from dfkd_core.common.memory import GIB, memory_at_hand
from dfkd_flows.settings.params import ExecutionConfig
from dfkd_flows.shown.lost import hold_run
from dfkd_tasks.caching.workspace import Artifact, is_intact

__all__ = ["FLOW_OPTIONS", "compute_for", "run_cached"]

FLOW_OPTIONS: dict[str, Any] = {"validate_parameters": False, "persist_result": False, "on_running": [hold_run]}

_BATCHES_AHEAD = 2


def compute_for(config: ExecutionConfig, *, num_workers: int = 1) -> Compute:
    """Return what each of so many workers computes with; memory is measured once, so that all have the same."""
    total = int(config.memory_gib * GIB) or memory_at_hand(resolve_device(config.device))
    # A second thread labels batches ahead, unless the parameters ask for one core.
    prefetch = _BATCHES_AHEAD if config.num_workers > 1 else 0
    return Compute(device=config.device, memory=total // num_workers, prefetch=prefetch)


def run_cached(task: Task[..., Artifact], *args: Any, **kwargs: Any) -> Artifact:
    """Run a cached task, and repeat it without the cache if its file is missing or has changed."""
    artifact: Artifact = task(*args, **kwargs)
    if is_intact(artifact):
        return artifact
    remade: Artifact = task.with_options(refresh_cache=True)(*args, **kwargs)
    return remade
