"""Fourier coefficients with a 1/f fall-off, as in natural images.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfkd_core.common.seeding import normal_rows, uniform_rows

__all__ = ["FourierPrior", "radial_frequencies"]

_EXPONENT = 1.5
_EXPONENT_SPREAD = 0.5


def radial_frequencies(height: int, width: int, *, half: bool) -> torch.Tensor:
    """Return the frequency in cycles per image side of each FFT coefficient, at least 1.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        half: Whether for `rfft2` ([h, w // 2 + 1]) or for `fft2` ([h, w]).
    """
    across = torch.fft.rfftfreq(width) if half else torch.fft.fftfreq(width)
    radius = (torch.fft.fftfreq(height)[:, None] ** 2 + across**2).sqrt() * max(height, width)
    frequencies: torch.Tensor = radius.clamp_min(1)
    return frequencies


class FourierPrior:
    """Images whose amplitude falls with frequency f as f^-1.5; the parameters are whitened coefficients.

    Parameters have shape [n, c, h, w // 2 + 1, 2]. A step of equal size in all of them changes slow structures most, so
    that refinement cannot produce pixel noise. Starts vary in exponent (1 to 2), contrast and brightness. Images pass
    through a sigmoid, since no cheap projection of coefficients keeps grey values in [0, 1].
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        """Make images of shape (c, h, w)."""
        channels, self._height, self._width = image_shape
        self._frequencies = radial_frequencies(self._height, self._width, half=True)
        self._coefficient_shape = (channels, *self._frequencies.shape, 2)
        falloff = self._frequencies**-_EXPONENT
        falloff[0, 0] = 1
        # Scales coefficients so that a unit in each is a pixel standard deviation of about 1 before the sigmoid.
        self._falloff = falloff * (self._height * self._width) / falloff.square().sum().mul(2).sqrt()

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw coefficients, see `ImagePrior.start`."""
        exponent, contrast, brightness = uniform_rows(seed, f"{stream}/style", image_indices, (3,)).unbind(1)
        shift = _EXPONENT_SPREAD * (2 * exponent - 1)
        scale = self._frequencies ** -shift[:, None, None] * (0.5 + 2.5 * contrast)[:, None, None]
        coefficients = normal_rows(seed, stream, image_indices, self._coefficient_shape) * scale[:, None, :, :, None]
        coefficients[:, :, 0, 0, 0] += 4 * (2 * brightness - 1)[:, None]
        return coefficients

    def decode(self, parameters: torch.Tensor) -> torch.Tensor:
        """Map coefficients to images in (0, 1)."""
        # Cached per device: a recording on a GPU must not copy anything to it.
        self._falloff = self._falloff.to(parameters.device)
        spectrum = torch.view_as_complex(parameters) * self._falloff
        images: torch.Tensor = torch.fft.irfft2(spectrum, s=(self._height, self._width)).sigmoid()
        return images

    def project(self, parameters: torch.Tensor) -> None:
        """Leave the parameters unchanged: all values are allowed."""
