"""The one table of image priors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from dfkd_core.priors.base import ImagePrior
from dfkd_core.priors.fourier import FourierPrior
from dfkd_core.priors.mixed import MixedPrior
from dfkd_core.priors.mosaic import MosaicPrior
from dfkd_core.priors.photos import PhotoPrior
from dfkd_core.priors.pixels import PixelPrior
from dfkd_core.priors.procedural import ProceduralPrior

__all__ = ["PriorName", "build_prior", "prior_names", "shows_photographs"]

PriorName = Literal["fourier", "mixed", "mosaic", "photos", "pixels", "procedural"]

_PRIORS: dict[PriorName, Callable[[tuple[int, int, int]], ImagePrior]] = {
    "fourier": FourierPrior,
    "mixed": MixedPrior,
    "mosaic": MosaicPrior,
    "photos": PhotoPrior,
    "pixels": PixelPrior,
    "procedural": ProceduralPrior,
}


def prior_names() -> tuple[PriorName, ...]:
    """Return the names of all priors, sorted."""
    return tuple(sorted(_PRIORS))


def shows_photographs(name: PriorName) -> bool:
    """Return whether images of this prior show parts of photographs; these are public and none is a teacher's data."""
    return name in ("mixed", "photos")


def build_prior(name: PriorName, image_shape: tuple[int, int, int]) -> ImagePrior:
    """Build the prior called `name` for images of shape (c, h, w)."""
    return _PRIORS[name](image_shape)
