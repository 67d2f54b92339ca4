"""Statistics from the weights alone, as in the paper.

Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021: N(mu, Sigma) with
Sigma = sigma^2 R, R_ij = cos(w_i, w_j) the correlation of the units. With W_hat the units' weights scaled to norm 1,
R = W_hat W_hat^T, so the factor of Sigma is sigma W_hat and no Cholesky decomposition is needed.

n samples, d units of the modelled layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import TeacherError
from dfkd_core.models.access import Inspectable
from dfkd_core.statistics.config import StatisticsConfig
from dfkd_core.statistics.features import FeatureStatistics

__all__ = ["from_weights", "unit_directions"]

_CALIBRATION_SAMPLES = 2000
_SIGMA_RANGE = (1e-3, 1e4)
_BISECTIONS = 30


def from_weights(teacher: Inspectable, config: StatisticsConfig, seed: int) -> FeatureStatistics:
    """Return N(mean, sigma^2 R) with `config.mean` and the sigma of `config.spread`.

    Raises:
        TeacherError: The modelled layer has no such weights, or no sigma reaches the confidence.
    """
    directions = unit_directions(teacher, config)
    mean = teacher.layer_bias() if config.mean == "bias" else torch.zeros(teacher.num_features)
    if config.spread == "sigma":
        return FeatureStatistics(mean, config.sigma * directions)
    return _with_confidence(teacher, mean, directions, config.confidence, seed)


def unit_directions(teacher: Inspectable, config: StatisticsConfig) -> Tensor:
    """Return W_hat [d, fan]: the weights of each unit, scaled to norm 1.

    Raises:
        TeacherError: The modelled layer has no weights on `config.side`.
    """
    return normalize(teacher.layer_weights(config.side).float(), dim=1)


def _with_confidence(
    teacher: Inspectable, mean: Tensor, directions: Tensor, confidence: float, seed: int
) -> FeatureStatistics:
    """Find sigma by bisection: a larger spread produces larger logits, and so more confident targets.

    The logits of the mean are subtracted: they depend only on the biases, and may be confident without any spread.
    """
    offset = teacher.rest(mean[None])
    noise = torch.randn(_CALIBRATION_SAMPLES, directions.shape[1], generator=derive_generator(seed, "calibration"))

    def found(sigma: float) -> float:
        logits = teacher.rest(mean + sigma * noise @ directions.T) - offset
        return logits.float().softmax(1).amax(1).mean().item()

    low, high = _SIGMA_RANGE
    if not found(low) < confidence < found(high):
        raise TeacherError(
            f"No sigma from {low} to {high} produces soft targets of mean confidence {confidence} (they range from "
            f"{found(low):.3f} to {found(high):.3f}). Set statistics.confidence between these, or "
            "statistics.spread: sigma"
        )
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if found(middle) < confidence else (low, middle)
    return FeatureStatistics(mean, high * directions)
