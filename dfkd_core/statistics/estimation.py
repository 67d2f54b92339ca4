"""Mean and covariance of the teacher's modelled layer, estimated without its training data.

After Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021: the feature space
is modelled as N(mu, Sigma) with Sigma = D R D, D = sigma I and R the correlation of the units, read off the weights.

n samples, d units of the modelled layer, r rank of the covariance.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import TeacherError
from dfkd_core.models.teacher import Side, Teacher
from dfkd_core.priors.procedural import ProceduralPrior
from dfkd_core.sections import Positive, PositiveInt, config_section
from dfkd_core.statistics.features import FeatureStatistics

__all__ = [
    "StatisticsConfig",
    "estimate_statistics",
]

_PROBE_BATCH = 500
_CALIBRATION_SAMPLES = 2000
_SIGMA_RANGE = (1e-3, 1e4)
_BISECTIONS = 30


@config_section
class StatisticsConfig:
    """How the feature space of the modelled layer is estimated."""

    source: Literal["weights", "batchnorm", "probes"] = "weights"
    """`weights`: correlation from the weights (the paper). `batchnorm`: the same correlation with mean and spread from
    BatchNorm buffers. `probes`: mean and covariance of the features of procedural images."""
    side: Side = "outgoing"
    """Weights that give the correlation: those that feed the units (rows) or those that read them (columns)."""
    spread: Literal["confidence", "sigma"] = "confidence"
    """What sets sigma, the standard deviation of every unit, with source `weights`: `confidence` finds the one at which
    the soft targets are as confident as a teacher is on data that it knows, `sigma` takes a number (the paper)."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.85
    """Mean largest probability of softmax(rest(h) - rest(mean)) to be reached with spread `confidence`."""
    sigma: Positive = 1.5
    """Standard deviation with spread `sigma`; 1.5 for MNIST and 2.0 for CIFAR-10 in the paper."""
    mean: Literal["zero", "bias"] = "zero"
    """Mean with source `weights`: 0 or the bias of the layer that computes the units."""
    num_probes: PositiveInt = 4000
    """Procedural images with source `probes`."""


def estimate_statistics(teacher: Teacher, config: StatisticsConfig, *, seed: int) -> FeatureStatistics:
    """Estimate the feature distribution of the teacher's modelled layer without data.

    With R = W_hat W_hat^T, W_hat the units' weights scaled to norm 1, the covariance is sigma^2 R (`weights`) or
    diag(std) R diag(std) (`batchnorm`), so its factor is known and no Cholesky decomposition is needed.

    Args:
        teacher: The frozen teacher.
        config: Which source to use.
        seed: Addresses the probe images and the samples that sigma is found with.

    Raises:
        TeacherError: The modelled layer has no such weights or no BatchNorm, no sigma gives the confidence, or the
            result is not finite.
    """
    if config.source == "probes":
        return _from_probes(teacher, config.num_probes, seed)
    directions = torch.nn.functional.normalize(teacher.layer_weights(config.side).float(), dim=1)
    if config.source == "batchnorm":
        mean, std = teacher.layer_batch_norm_moments()
        return FeatureStatistics(mean, std[:, None] * directions)
    mean = teacher.layer_bias() if config.mean == "bias" else torch.zeros(teacher.num_features)
    if config.spread == "sigma":
        return FeatureStatistics(mean, config.sigma * directions)
    return _with_confidence(teacher, mean, directions, config.confidence, seed)


def _with_confidence(
    teacher: Teacher, mean: Tensor, directions: Tensor, confidence: float, seed: int
) -> FeatureStatistics:
    """Find sigma by bisection: more spread gives larger logits, and so more confident targets.

    The logits of the mean are subtracted: what the biases alone say is no spread, and may be confident by itself.
    """
    offset = teacher.rest(mean[None])
    noise = torch.randn(_CALIBRATION_SAMPLES, directions.shape[1], generator=derive_generator(seed, "calibration"))

    def found(sigma: float) -> float:
        logits = teacher.rest(mean + sigma * noise @ directions.T) - offset
        return logits.float().softmax(1).amax(1).mean().item()

    low, high = _SIGMA_RANGE
    if not found(low) < confidence < found(high):
        raise TeacherError(
            f"No sigma from {low} to {high} gives soft targets of mean confidence {confidence} (they go from "
            f"{found(low):.3f} to {found(high):.3f}). Set statistics.confidence between those or spread: sigma"
        )
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if found(middle) < confidence else (low, middle)
    return FeatureStatistics(mean, high * directions)


def _from_probes(teacher: Teacher, num_probes: int, seed: int) -> FeatureStatistics:
    prior = ProceduralPrior(teacher.card.image_shape)
    batches = []
    with torch.no_grad():
        for first in range(0, num_probes, _PROBE_BATCH):
            indices = range(first, min(first + _PROBE_BATCH, num_probes))
            images = prior.decode(prior.start(indices, seed=seed, stream="probe")).to(teacher.device)
            for part in teacher.passes.split(images):
                batches.append(teacher.forward_with_features(part)[1].cpu().double())
    features = torch.cat(batches)
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / max(len(features) - 1, 1))
    kept = values > values.max() * 1e-12
    factor = vectors[:, kept] * values[kept].sqrt()
    return FeatureStatistics(mean.float(), factor.float())
