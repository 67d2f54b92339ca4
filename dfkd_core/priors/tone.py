"""Brightness and contrast of drawn images, fitted to what a network's normalisation says of its training images.

A network that was trained on images less their mean and over their standard deviation carries these two numbers with
it. Drawn images that have them too lie nearer to what it knows: in the first layers of a network for black letters on
white, a prior of greys has a third of the variance that they saw in training.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_core.priors.base import ImagePrior
from dfkd_core.seeding import uniform_rows

__all__ = ["Tone", "TonedPrior", "are_pixel_statistics", "count_levels", "fit_tone"]

_NUM_LEVELS = 256
# Grey levels in [0, 1] of mean m have a variance of m (1 - m) at most, reached by black and white alone. Conventions
# such as 0.5 and 0.5, or 0 and 1, lie there or beyond it.
_LARGEST_SHARE_OF_VARIANCE = 0.95
_LARGEST_GAIN = 16.0
_NUM_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Tone:
    """x -> 1/2 + gain (x - 1/2) + offset for each channel, cut off at 0 and 1."""

    gain: tuple[float, ...]
    """Contrast about mid-grey, above 0."""
    offset: tuple[float, ...]
    """Brightness added."""

    def apply(self, images: Tensor) -> Tensor:
        """Return images [n, c, h, w] in [0, 1] with this tone."""
        gain, offset = (images.new_tensor(values)[:, None, None] for values in (self.gain, self.offset))
        return ((images - 0.5) * gain).add_(0.5 + offset).clamp_(0, 1)


class TonedPrior:
    """A prior of pixels in which a share of the drawn images has a tone; refinement starts from them."""

    def __init__(self, prior: ImagePrior, tone: Tone, share: float) -> None:
        """Give this share of what `prior` draws the tone, image by image."""
        self._prior, self._tone, self._share = prior, tone, share

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> Tensor:
        """Draw images, see `ImagePrior.start`."""
        images = self._prior.start(image_indices, seed=seed, stream=stream)
        is_toned = uniform_rows(seed, f"{stream}/tone", image_indices, (1,))[:, 0] < self._share
        images[is_toned] = self._tone.apply(images[is_toned])
        return images

    def decode(self, parameters: Tensor) -> Tensor:
        """Turn parameters into images, see `ImagePrior.decode`."""
        return self._prior.decode(parameters)

    def project(self, parameters: Tensor) -> None:
        """Bring parameters back to [0, 1], see `ImagePrior.project`."""
        self._prior.project(parameters)


def are_pixel_statistics(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Tell whether a normalisation can be the mean and standard deviation of training images in [0, 1].

    Conventions that say nothing of the images, such as 0 and 1 or 0.5 and 0.5, cannot.
    """
    shares = (s**2 / (m * (1 - m)) if 0 < m < 1 else 1 for m, s in zip(mean, std, strict=True))
    return all(share < _LARGEST_SHARE_OF_VARIANCE for share in shares)


def count_levels(images: Tensor) -> Tensor:
    """Count the pixels of images [n, c, h, w] in [0, 1] per channel and grey level, int64 [c, 256]."""
    levels = (images * (_NUM_LEVELS - 1)).round().long().transpose(0, 1).flatten(1)
    return torch.stack([channel.bincount(minlength=_NUM_LEVELS) for channel in levels])


def fit_tone(counts: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tone:
    """Return the tone that gives pixels this mean and standard deviation in each channel.

    Args:
        counts: Pixels per channel and grey level [c, 256], see `count_levels`.
        mean: Wanted mean of each channel, in (0, 1).
        std: Wanted standard deviation of each channel, in (0, sqrt(mean (1 - mean))).

    Returns:
        The tone; a channel of one grey level only gets the mean, and no gain is above 16.
    """
    levels = torch.linspace(0, 1, _NUM_LEVELS, dtype=torch.float64)
    shares = counts.double() / counts.sum(1, keepdim=True)
    pairs = [_fit_channel(levels, *channel) for channel in zip(shares, mean, std, strict=True)]
    return Tone(gain=tuple(gain for gain, _ in pairs), offset=tuple(offset for _, offset in pairs))


def _fit_channel(levels: Tensor, share: Tensor, mean: float, std: float) -> tuple[float, float]:
    """Find the gain at which the deviation is right, each with the offset at which the mean is."""

    def toned(gain: float, offset: float) -> Tensor:
        return ((levels - 0.5) * gain + 0.5 + offset).clamp(0, 1)

    def offset_for(gain: float) -> float:
        reach = 0.5 + gain / 2
        return _bisect(lambda offset: float(share @ toned(gain, offset)) - mean, -reach, reach)

    def excess(gain: float) -> float:
        image = toned(gain, offset_for(gain))
        return float(share @ (image - mean).square()) - std**2

    # One grey level has no contrast to change.
    gain = 1.0 if float(share.max()) == 1 else _bisect(excess, 0.0, _LARGEST_GAIN)
    return gain, offset_for(gain)


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that rises from `low` to `high` passes 0, or the end that is nearer to it."""
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
