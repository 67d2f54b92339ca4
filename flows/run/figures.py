"""The figures of a student's last run, under the names that they have in MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dfkd_core.evaluation.intervals import Z_95, wilson_interval
from dfkd_flows.run.table import read_latency, read_metrics
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.records.forms import between
from dfkd_tasks.records.timing import stage_seconds

__all__ = ["intervals", "joint_figure", "measured_times", "numbers", "share_interval", "student_figures"]


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


def joint_figure(figures: Mapping[str, float], name: str) -> float | None:
    """Return a figure of a student by its name in the table; that of a proxy is stored under another one."""
    return figures.get(f"proxy.{name}", figures.get(f"student.{name}"))


def share_interval(share: float | None, num_images: float) -> tuple[float, float] | None:
    """Return the interval of 95 % of a share of images (Wilson); None if the share or the images are not known."""
    if share is None or not math.isfinite(share) or num_images < 1:
        return None
    return wilson_interval(share, int(num_images), Z_95)


def intervals(params: Params) -> Iterator[tuple[str, str, str]]:
    """Yield rows with the intervals of 95 % of accuracy and agreement: name, teacher and student.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    found = numbers(read_metrics(StudentFiles(params.student_name)))
    for name in ("accuracy", "agreement"):
        teacher, student = found.get(f"teacher.{name}"), joint_figure(found, name)
        texts = [between(share_interval(share, found.get("num_images", 0))) for share in (teacher, student)]
        if any(texts):
            yield f"{name}, 95 % interval", texts[0], texts[1]
