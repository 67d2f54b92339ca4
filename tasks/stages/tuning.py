"""Try settings: make a student in memory and score it without real data."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from dfkd_core.common.compute import Compute
from dfkd_core.compression import make_student
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.evaluation.proxy import proxy_score
from dfkd_core.statistics.features import load_statistics
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_tasks.caching.stored_models import load_allowed_teacher
from dfkd_tasks.caching.workspace import Artifact
from dfkd_tasks.records.timing import timed

__all__ = ["try_settings"]


@task(name="try settings", cache_policy=NO_CACHE)
def try_settings(
    teacher: Artifact,
    statistics: Artifact,
    synthesis: SynthesisConfig,
    distillation: DistillationConfig,
    *,
    seed: int,
    compute: Compute,
) -> float:
    """Make a transfer set and a student, and return the student's proxy score on the seed's images."""
    with timed("tune"):
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        features = load_statistics(Path(statistics.path))
        student = make_student(loaded, features, synthesis, distillation, seed=seed, prefetch=compute.prefetch)
        return proxy_score(loaded, student, seed=seed)
