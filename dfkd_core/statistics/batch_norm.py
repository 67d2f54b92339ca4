"""Statistics with mean and spread from BatchNorm's buffers: N(mean, diag(std) R diag(std)).

R is the correlation of the units, computed from their weights, see `dfkd_core.statistics.weights`.
"""

from __future__ import annotations

from dfkd_core.models.access import Inspectable
from dfkd_core.statistics.config import StatisticsConfig
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.statistics.weights import unit_directions

__all__ = ["from_batch_norm"]


def from_batch_norm(teacher: Inspectable, config: StatisticsConfig, seed: int) -> FeatureStatistics:
    """Return the distribution; the seed is not used.

    Raises:
        TeacherError: The modelled layer has no BatchNorm, or no weights on `config.side`.
    """
    directions = unit_directions(teacher, config)
    mean, std = teacher.layer_batch_norm_moments()
    return FeatureStatistics(mean, std[:, None] * directions)
