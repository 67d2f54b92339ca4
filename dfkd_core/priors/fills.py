"""The inside of a shape: plain, shaded, striped, checked or rough.

m shapes, h height, w width.
"""

from __future__ import annotations

import math

import torch

from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fourier import radial_frequencies

__all__ = ["NUM_FILL_DRAWS", "fill_maps", "rough_fields"]

NUM_FILL_DRAWS = 16


def rough_fields(white: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Return two independent smooth random fields per image with amplitude f^-exponent.

    Args:
        white: Uniform numbers [n, 2, h, w] in [0, 1), used as Fourier coefficients.
        exponent: [n].

    Returns:
        [n, 2, h, w] with mean 0 and standard deviation 1.
    """
    height, width = white.shape[2:]
    falloff = (radial_frequencies(height, width, half=False).log() * -exponent[:, None, None]).exp_()
    falloff[:, 0, 0] = 0
    centred = 2 * white - 1
    # Real and imaginary part of one complex transform are two fields.
    fields = torch.fft.ifft2(torch.complex(centred[:, 0] * falloff, centred[:, 1] * falloff))
    fields = torch.view_as_real(fields).movedim(-1, 1)
    return fields / fields.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def fill_maps(
    carriers: torch.Tensor, centre: torch.Tensor, radius: torch.Tensor, draws: Cursor, *, plain_share: float
) -> torch.Tensor:
    """Return the position of each pixel's colour between a shape's two colours, [m, h, w] in [0, 1].

    Args:
        carriers: Per shape its image's coordinates x and y in half image sides and its two rough fields, [m, 4, h, w].
        centre: Centres of the shapes, x and y in half image sides, [m, 2].
        radius: Radii of the shapes in half image sides, [m]; shading scales with them.
        draws: NUM_FILL_DRAWS uniform numbers per shape.
        plain_share: Share of the shapes that have only their first colour.
    """
    is_plain = draws.chance(plain_share)
    level = torch.where(is_plain, 0.0, draws.between(0.25, 0.75))
    shading = _shading(radius, is_plain, draws)
    stripes = _Stripes(is_plain, draws)
    weights = torch.cat([shading, _texture(is_plain, draws)], 1)
    offset = level - (shading * centre).sum(1)
    flat = carriers.flatten(2)
    # Everything that is linear in the carriers is one small matrix product per shape.
    value = torch.baddbmm(offset[:, None, None], weights[:, None], flat)
    stripes.add_to(value, flat[:, :2], centre)
    return value.view(len(value), *carriers.shape[2:]).clamp_(0, 1)


def _shading(radius: torch.Tensor, is_plain: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return the slopes along x and y [m, 2] of a fill that brightens in one direction, as under light."""
    angle, strength = draws.between(0, 2 * math.pi), draws.between(0, 0.7)
    strength = strength * draws.chance(0.6) * ~is_plain / radius.clamp_min(0.2)
    return torch.stack([strength * angle.cos(), strength * angle.sin()], 1)


def _texture(is_plain: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return weights of the two fields, [m, 2]: shapes of one image differ in texture but not in grain."""
    strength, is_rough, mix = draws.between(0, 0.35), draws.chance(0.6), draws.between(0, 2 * math.pi)
    strength = strength * (is_rough & ~is_plain)
    return torch.stack([strength * mix.cos(), strength * mix.sin()], 1)


class _Stripes:
    """Gratings from soft to hard edges; a second one at a right angle crosses some of them and produces checks."""

    def __init__(self, is_plain: torch.Tensor, draws: Cursor) -> None:
        angle = draws.between(0, math.pi)
        self._phases = 2 * math.pi * draws.take(2)
        angle = torch.where(draws.chance(0.5), (angle / math.pi * 4).floor() * math.pi / 4, angle)
        frequency = 3 * torch.exp(draws.between(0, math.log(8)))
        self._hardness, self._strength = 0.6 + 4 * draws.take().pow(3), draws.between(0.1, 0.5)
        self._kind = draws.choice(0.5, 0.35, 0.15) * ~is_plain
        along = torch.stack([angle.cos(), angle.sin()], 1)
        across = torch.stack([-angle.sin(), angle.cos()], 1)
        self._waves = frequency[:, None, None] * torch.stack([along, across], 1)

    def add_to(self, value: torch.Tensor, coordinates: torch.Tensor, centre: torch.Tensor) -> None:
        """Add the gratings of the shapes that have any.

        Args:
            value: [m, 1, h w], changed.
            coordinates: x and y, [m, 2, h w].
            centre: Centres of the shapes, [m, 2].
        """
        for num_waves in (1, 2):
            chosen = (self._kind == num_waves).nonzero()[:, 0]
            slopes = self._waves[chosen, :num_waves]
            phases = self._phases[chosen, :num_waves, None] - slopes @ centre[chosen, :, None]
            waves = torch.baddbmm(phases, slopes, coordinates.index_select(0, chosen)).sin_()
            grating = waves if num_waves == 1 else waves[:, :1].mul_(waves[:, 1:])
            grating.mul_(self._hardness[chosen, None, None]).clamp_(-1, 1)
            value.index_add_(0, chosen, grating.mul_(self._strength[chosen, None, None]))
