"""How the features of the modelled layer are estimated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from dfkd_core.models.access import Access, Side
from dfkd_core.sections import OneOf, Positive, PositiveInt, config_section

__all__ = ["StatisticsConfig"]


def _source_names() -> Iterable[str]:
    # Imported here: the sources read this configuration.
    from dfkd_core.statistics.estimation import SOURCES

    return SOURCES


@config_section
class StatisticsConfig:
    """How the feature distribution of the modelled layer is estimated.

    Example:
        >>> from dfkd_core import StatisticsConfig
        >>> config = StatisticsConfig(spread="sigma", sigma=2.0)
        >>> config.source, config.needs
        ('weights', 'layers')
    """

    source: Annotated[str, OneOf(_source_names)] = "weights"
    """`weights`: correlation from the weights (the paper). `batchnorm`: the same correlation with mean and spread from
    BatchNorm buffers. `probes`: mean and covariance of the features of procedural images."""
    side: Side = "outgoing"
    """Weights that determine the correlation: those that compute the units (rows) or those that read them (columns)."""
    spread: Literal["confidence", "sigma"] = "confidence"
    """How sigma, the standard deviation of every unit, is set with source `weights`: `confidence` finds the sigma at
    which soft targets are as confident as a teacher on its own data, `sigma` takes a fixed value (the paper)."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.85
    """Target of spread `confidence` for the mean largest probability of softmax(rest(h) - rest(mean))."""
    sigma: Positive = 1.5
    """Standard deviation with spread `sigma`; 1.5 for MNIST and 2.0 for CIFAR-10 in the paper."""
    mean: Literal["zero", "bias"] = "zero"
    """Mean with source `weights`: 0 or the bias of the layer that computes the units."""
    num_probes: PositiveInt = 4000
    """Number of procedural images with source `probes`."""

    @property
    def needs(self) -> Access:
        """The access to the teacher that the source needs."""
        from dfkd_core.statistics.estimation import SOURCES

        return SOURCES[self.source].needs
