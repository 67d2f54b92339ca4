"""Statistics of the features of procedural images: their mean and covariance.

n images, d units of the modelled layer, r rank of the covariance.
"""

from __future__ import annotations

import torch

from dfkd_core.models.access import Inspectable
from dfkd_core.priors.procedural import ProceduralPrior
from dfkd_core.statistics.config import StatisticsConfig
from dfkd_core.statistics.features import FeatureStatistics

__all__ = ["from_probes"]

_PROBE_BATCH = 500


@torch.no_grad()
def from_probes(teacher: Inspectable, config: StatisticsConfig, seed: int) -> FeatureStatistics:
    """Return mean and covariance of the features of `config.num_probes` images drawn from `seed`."""
    prior = ProceduralPrior(teacher.card.image_shape)
    batches = []
    for first in range(0, config.num_probes, _PROBE_BATCH):
        indices = range(first, min(first + _PROBE_BATCH, config.num_probes))
        images = prior.decode(prior.start(indices, seed=seed, stream="probe")).to(teacher.device)
        for part in teacher.passes.split(images):
            batches.append(teacher.forward_with_features(part)[1].cpu().double())
    features = torch.cat(batches)
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / max(len(features) - 1, 1))
    kept = values > values.max() * 1e-12
    factor = vectors[:, kept] * values[kept].sqrt()
    return FeatureStatistics(mean.float(), factor.float())
