"""Linear least squares with a ridge.

m rows, p inputs, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fit_linear", "with_ridge"]

# Share of the inputs' mean variance; a larger one trusts the prior weights more and the rows less.
_RIDGE = 0.03


def fit_linear(inputs: Tensor, wanted: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [o, p] and biases [o] that map inputs [m, p] to wanted [m, o], ridge towards `prior`."""
    input_mean, wanted_mean = inputs.mean(0), wanted.mean(0)
    inputs, wanted = inputs - input_mean, wanted - wanted_mean
    gram = with_ridge(inputs.T @ inputs)
    missing = wanted - inputs @ prior.T
    weights = prior + torch.cholesky_solve(inputs.T @ missing, torch.linalg.cholesky(gram)).T
    return weights, wanted_mean - weights @ input_mean


def with_ridge(gram: Tensor) -> Tensor:
    """Add, in place, a share of the mean variance to the diagonal of a covariance [p, p], and return it."""
    gram.diagonal().add_(max(_RIDGE * gram.diagonal().mean().item(), 1e-30))
    return gram
