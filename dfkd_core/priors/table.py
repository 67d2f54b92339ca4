"""The one table of image priors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated

import torch

from dfkd_core.priors.base import ImagePrior
from dfkd_core.priors.fourier import FourierPrior
from dfkd_core.priors.mixed import MixedPrior
from dfkd_core.priors.mosaic import MosaicPrior
from dfkd_core.priors.photos import PhotoPrior
from dfkd_core.priors.pixels import PixelPrior
from dfkd_core.priors.procedural import ProceduralPrior
from dfkd_core.priors.shaders import ShaderPrior
from dfkd_core.priors.tone import Tone, TonedPrior, count_levels, fit_tone
from dfkd_core.sections import OneOf

__all__ = ["PRIORS", "PriorName", "build_prior", "build_toned_prior", "prior_names", "shows_photographs"]

PRIORS: dict[str, Callable[[tuple[int, int, int]], ImagePrior]] = {
    "fourier": FourierPrior,
    "mixed": MixedPrior,
    "mosaic": MosaicPrior,
    "photos": PhotoPrior,
    "pixels": PixelPrior,
    "procedural": ProceduralPrior,
    "shaders": ShaderPrior,
}
"""The builder of each prior for images of shape (c, h, w)."""

PriorName = Annotated[str, OneOf(PRIORS.keys)]
"""Name of a prior in `PRIORS`."""

# Images that a tone is fitted on: enough for their mean brightness to 0.005, and small enough to be drawn in a second,
# since brightness and contrast hardly depend on the size.
_NUM_FITTED = 2048
_FITTED_AT_ONCE = 256
_LARGEST_FITTED_PX = 32


def prior_names() -> tuple[str, ...]:
    """Return the names of all priors, sorted."""
    return tuple(sorted(PRIORS))


def shows_photographs(name: PriorName) -> bool:
    """Return whether images of this prior show parts of photographs; these are public and none is a teacher's data."""
    return name in ("mixed", "photos")


def build_prior(name: PriorName, image_shape: tuple[int, int, int]) -> ImagePrior:
    """Build the prior called `name` for images of shape (c, h, w)."""
    return PRIORS[name](image_shape)


def build_toned_prior(
    name: PriorName,
    image_shape: tuple[int, int, int],
    *,
    share: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImagePrior:
    """Build the prior called `name`, one of pixels; a share of its images has this mean and standard deviation.

    Args:
        name: Any prior but `fourier`.
        image_shape: (c, h, w).
        share: Share of the images, drawn image by image.
        mean: Mean of each channel over the pixels of these images, in (0, 1).
        std: Standard deviation of each channel.
    """
    tone = _fitted_tone(name, image_shape, mean, std)
    return TonedPrior(build_prior(name, image_shape), tone, share=share, mean=mean, std=std)


@cache
def _fitted_tone(
    name: PriorName, image_shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Tone:
    # The same images for every seed of the run: the tone belongs to the prior and the teacher.
    channels, height, width = image_shape
    prior = build_prior(name, (channels, min(height, _LARGEST_FITTED_PX), min(width, _LARGEST_FITTED_PX)))
    parts = (range(first, first + _FITTED_AT_ONCE) for first in range(0, _NUM_FITTED, _FITTED_AT_ONCE))
    counts = [count_levels(prior.start(part, seed=0, stream="tone")).sum(0) for part in parts]
    return fit_tone(torch.stack(counts).sum(0), mean, std)
