"""Image priors: where synthesized images start from and which numbers refinement optimises."""

from dfkd_core.priors.base import ImagePrior
from dfkd_core.priors.fourier import FourierPrior
from dfkd_core.priors.mixed import MixedPrior
from dfkd_core.priors.mosaic import MosaicPrior
from dfkd_core.priors.photos import PhotoPrior
from dfkd_core.priors.pixels import PixelPrior
from dfkd_core.priors.procedural import ProceduralPrior
from dfkd_core.priors.table import PriorName, build_prior, build_toned_prior, prior_names, shows_photographs
from dfkd_core.priors.tone import are_pixel_statistics

__all__ = [
    "FourierPrior",
    "ImagePrior",
    "MixedPrior",
    "MosaicPrior",
    "PhotoPrior",
    "PixelPrior",
    "PriorName",
    "ProceduralPrior",
    "are_pixel_statistics",
    "build_prior",
    "build_toned_prior",
    "prior_names",
    "shows_photographs",
]
