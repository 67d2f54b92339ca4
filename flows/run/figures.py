"""The figures of a student's last run, under the names that they have in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfkd_flows.run.table import read_latency, read_metrics
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.records.timing import stage_seconds

__all__ = ["measured_times", "numbers", "student_figures"]


def student_figures(params: Params) -> dict[str, float]:
    """Return all figures of one student by dotted name: shares, sizes in bytes, seconds and milliseconds.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: There are no results yet, or they are damaged.
    """
    return numbers(read_metrics(StudentFiles(params.student_name))) | measured_times(params)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a student's figures by dotted name."""
    return {name: float(value) for name, value in flatten(metrics).items() if isinstance(value, int | float)}


def measured_times(params: Params) -> dict[str, float]:
    """Return the measured seconds per stage and milliseconds per batch of one student."""
    measured = {address.partition("@")[0]: stage_seconds(address) for address in addresses(params)}
    times = {f"seconds.{name}": found[0] for name, found in measured.items() if found}
    latency = flatten(read_latency(StudentFiles(params.student_name)))
    return times | {f"latency.{name}": value for name, value in latency.items()}
