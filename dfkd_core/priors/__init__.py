"""Image priors: where synthesized images start from and which numbers refinement optimises."""

from dfkd_core.priors.base import ImagePrior
from dfkd_core.priors.fourier import FourierPrior
from dfkd_core.priors.pixels import PixelPrior
from dfkd_core.priors.procedural import ProceduralPrior
from dfkd_core.priors.table import PriorName, build_prior, prior_names

__all__ = [
    "FourierPrior",
    "ImagePrior",
    "PixelPrior",
    "PriorName",
    "ProceduralPrior",
    "build_prior",
    "prior_names",
]
