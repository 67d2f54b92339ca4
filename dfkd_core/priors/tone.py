"""Brightness and contrast of drawn images, fitted to the mean and standard deviation of a network's normalisation.

If the training images were normalised by their mean and standard deviation, the network carries these two numbers.
Drawn images with the same numbers are nearer to its training data: in the first layers of a network for black letters
on white, a prior of greys has a third of the variance of the training images.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.base import ImagePrior

__all__ = ["Tone", "TonedPrior", "are_pixel_statistics", "count_levels", "fit_tone"]

_NUM_LEVELS = 256
# Grey levels in [0, 1] of mean m have a variance of m (1 - m) at most, reached only by black and white. Conventions
# such as 0.5 and 0.5, or 0 and 1, are at this bound or beyond it.
_LARGEST_SHARE_OF_VARIANCE = 0.95
_LARGEST_GAIN = 16.0
_NUM_GAIN_HALVINGS = 12
_NUM_OFFSET_HALVINGS = 16
# Below this deviation, five of 255 grey levels, an image counts as empty.
_LEAST_CONTRAST = 0.02


@dataclass(frozen=True, slots=True)
class Tone:
    """x -> 1/2 + gain (x - 1/2) + offset for each channel, clipped to [0, 1]."""

    gain: Tensor
    """Contrast about mid-grey, above 0: [c] for all images, [n, c] for each image."""
    offset: Tensor
    """Brightness added, of the same shape."""

    def apply(self, images: Tensor) -> Tensor:
        """Return images [n, c, h, w] in [0, 1] with this tone."""
        gain, offset = (values[..., None, None].to(images) for values in (self.gain, self.offset))
        return ((images - 0.5) * gain).add_(0.5 + offset).clamp_(0, 1)


class TonedPrior:
    """A prior of pixels in which a share of the drawn images has a tone; refinement starts from them."""

    def __init__(
        self, prior: ImagePrior, tone: Tone, *, share: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Apply the tone to this share of the images of `prior`, image by image.

        Args:
            prior: Draws the images.
            tone: Sets the mean and the standard deviation of all of them together.
            share: Share of the images, from 0 to 1.
            mean: Mean of each channel. An image that the tone clips to a single level, such as a grey one to black,
                gets a separate tone that is fitted to it.
            std: Standard deviation of each channel.
        """
        self._prior, self._tone, self._share, self._mean, self._std = prior, tone, share, mean, std

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> Tensor:
        """Draw images, see `ImagePrior.start`."""
        images = self._prior.start(image_indices, seed=seed, stream=stream)
        is_toned = uniform_rows(seed, f"{stream}/tone", image_indices, (1,))[:, 0] < self._share
        if is_toned.any():
            images[is_toned] = self._toned(images[is_toned])
        return images

    def decode(self, parameters: Tensor) -> Tensor:
        """Map parameters to images, see `ImagePrior.decode`."""
        return self._prior.decode(parameters)

    def project(self, parameters: Tensor) -> None:
        """Clamp parameters to [0, 1], see `ImagePrior.project`."""
        self._prior.project(parameters)

    def _toned(self, images: Tensor) -> Tensor:
        toned = self._tone.apply(images)
        is_empty = toned.flatten(2).std(2, correction=0).amax(1) < _LEAST_CONTRAST
        if is_empty.any():
            lost = images[is_empty]
            toned[is_empty] = fit_tone(count_levels(lost), self._mean, self._std).apply(lost)
        return toned


def are_pixel_statistics(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Return whether a normalisation can be the mean and standard deviation of training images in [0, 1].

    Conventions without information on the images, such as 0 and 1 or 0.5 and 0.5, cannot.
    """
    shares = (s**2 / (m * (1 - m)) if 0 < m < 1 else 1 for m, s in zip(mean, std, strict=True))
    return all(share < _LARGEST_SHARE_OF_VARIANCE for share in shares)


def count_levels(images: Tensor) -> Tensor:
    """Count the pixels of images [n, c, h, w] in [0, 1] per image, channel and grey level, float64 [n, c, 256]."""
    levels = (images * (_NUM_LEVELS - 1)).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], _NUM_LEVELS, dtype=torch.float64)
    return counts.scatter_add_(2, levels, torch.ones((), dtype=torch.float64).expand(levels.shape))


def fit_tone(counts: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tone:
    """Return the tone that sets pixels to this mean and standard deviation in each channel.

    Args:
        counts: Pixels per channel and grey level, [c, 256] or [n, c, 256], see `count_levels`.
        mean: Wanted mean of each channel, in (0, 1).
        std: Wanted standard deviation of each channel, in (0, sqrt(mean (1 - mean))).

    Returns:
        The tone, or one for each of n. No gain is above 16, so that pixels of nearly one level stay alike.
    """
    shares = counts / counts.sum(-1, keepdim=True)
    levels = torch.linspace(0, 1, _NUM_LEVELS, dtype=torch.float64)
    wanted_mean, wanted_std = (
        torch.tensor(moment, dtype=torch.float64).expand(shares.shape[:-1]) for moment in (mean, std)
    )

    def toned(gain: Tensor, offset: Tensor) -> Tensor:
        return ((levels - 0.5) * gain[..., None] + (0.5 + offset)[..., None]).clamp_(0, 1)

    def offset_for(gain: Tensor) -> Tensor:
        reach = 0.5 + gain / 2
        return _bisect(
            lambda offset: (shares * toned(gain, offset)).sum(-1) - wanted_mean, -reach, reach, _NUM_OFFSET_HALVINGS
        )

    def excess(gain: Tensor) -> Tensor:
        deviation = toned(gain, offset_for(gain)) - wanted_mean[..., None]
        return (shares * deviation.square()).sum(-1) - wanted_std.square()

    none, most = torch.zeros_like(wanted_mean), torch.full_like(wanted_mean, _LARGEST_GAIN)
    # One grey level has no contrast to change.
    gain = torch.where(shares.amax(-1) == 1, 1.0, _bisect(excess, none, most, _NUM_GAIN_HALVINGS))
    return Tone(gain=gain, offset=offset_for(gain))


def _bisect(rising: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, num_halvings: int) -> Tensor:
    """Return the zero of a function that rises from `low` to `high`, or the end that is nearer to it."""
    for _ in range(num_halvings):
        middle = (low + high) / 2
        is_below = rising(middle) < 0
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2
