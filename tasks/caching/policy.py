"""Options of all cached tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.cache_policies import INPUTS, CachePolicy
from prefect.client.schemas.objects import State, TaskRun

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code import code_digest

__all__ = ["StageCode", "cached", "is_worth_a_retry"]


@dataclass
class StageCode(CachePolicy):
    """Part of a cache key: the code of one stage. Prefect's own policy covers only the lines of the task itself."""

    stage: str = ""

    def compute_key(self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any) -> str:
        """Return the digest of the stage's code."""
        return code_digest(self.stage)


def cached(stage: str, *without: str) -> dict[str, Any]:
    """Return the options of a task that is cached by its inputs and by the code of its stage.

    Results are stored as JSON, so nothing is unpickled.

    Args:
        stage: Stage whose code counts, a key of `ENTRY_MODULES`.
        *without: Inputs that do not change the result.
    """
    inputs: CachePolicy = INPUTS
    for name in without:
        inputs = inputs - name
    return {
        "cache_policy": inputs + StageCode(stage=stage),
        "persist_result": True,
        "result_serializer": "json",
        "retry_condition_fn": is_worth_a_retry,
    }


def is_worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether another attempt may succeed: with bad input it cannot."""
    try:
        state.result()
    except DfkdError:
        return False
    except Exception:
        return True
    return False
