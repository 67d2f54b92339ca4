"""Mean and covariance of the teacher's modelled layer, estimated without its training data.

Holds the table of sources. The features are modelled as a normal distribution, after Wang, "Data-Free Knowledge
Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from dfkd_core.models.access import Access, Inspectable, Labeller, require_access
from dfkd_core.statistics.batch_norm import from_batch_norm
from dfkd_core.statistics.config import StatisticsConfig
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.statistics.probes import from_probes
from dfkd_core.statistics.weights import from_weights

__all__ = ["SOURCES", "Source", "StatisticsConfig", "estimate_statistics"]


@dataclass(frozen=True, slots=True)
class Source:
    """One way to estimate the statistics."""

    estimate: Callable[[Inspectable, StatisticsConfig, int], FeatureStatistics]
    """Takes the teacher, the settings and the seed."""
    needs: Access = "layers"
    """The access to the teacher that it needs."""


SOURCES: dict[str, Source] = {
    "weights": Source(from_weights),
    "batchnorm": Source(from_batch_norm),
    "probes": Source(from_probes),
}
"""The sources by name, the values of `statistics.source`."""


def estimate_statistics(teacher: Labeller, config: StatisticsConfig, *, seed: int) -> FeatureStatistics:
    """Estimate the feature distribution of the teacher's modelled layer without data.

    Args:
        teacher: The frozen teacher; must allow what the source needs.
        config: The source and its settings.
        seed: Seed of all random draws.

    Raises:
        TeacherError: The teacher does not allow the access that the source needs, the modelled layer lacks weights or
            buffers, or the result is not finite.

    Example:
        >>> from dfkd_core import ModelCard, StatisticsConfig, Teacher, build_classifier, estimate_statistics
        >>> size = {"in_channels": 1, "image_size": 32, "num_classes": 10}
        >>> card = ModelCard(network="lenet5", mean=(0.5,), std=(0.25,), layer="fc1", **size)
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> statistics = estimate_statistics(teacher, StatisticsConfig(spread="sigma", sigma=1.5), seed=0)
        >>> statistics.mean.shape, round(statistics.covariance[0, 0].item(), 2)
        (torch.Size([84]), 2.25)
    """
    source = SOURCES[config.source]
    require_access(
        teacher,
        source.needs,
        by=f"statistics.source {config.source}",
        remedy="Pass the teacher as weights, or choose a synthesis method that uses no statistics, such as noise",
    )
    return source.estimate(cast(Inspectable, teacher), config, seed)
