"""Estimate the statistics of the teacher's features."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from dfkd_core.common.compute import Compute
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.statistics.features import save_statistics
from dfkd_tasks.caching.policy import cached
from dfkd_tasks.caching.stored_models import load_allowed_teacher
from dfkd_tasks.caching.workspace import Artifact, clear_folder, reference
from dfkd_tasks.records.timing import timed

__all__ = ["make_statistics"]


@task(name="estimate statistics", **cached("statistics", "compute"))
def make_statistics(
    teacher: Artifact, config: StatisticsConfig, *, seed: int, folder: str, compute: Compute
) -> Artifact:
    """Estimate the statistics of the stored teacher and write them into `folder`."""
    with timed("statistics"):
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        statistics = estimate_statistics(loaded, config, seed=seed)
    out = clear_folder(Path(folder))
    save_statistics(out, statistics)
    return reference(out, {"num_features": loaded.num_features})
