"""What the inside of a shape looks like: plain, shaded, striped, checked or rough.

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
    x: torch.Tensor,
    y: torch.Tensor,
    fields: torch.Tensor,
    image: torch.Tensor,
    radius: torch.Tensor,
    draws: Cursor,
    *,
    plain_share: float,
) -> torch.Tensor:
    """Return where each pixel lies between a shape's two colours, [m, h, w] in [0, 1].

    Args:
        x: Coordinates [m, h, w] about the shape's centre in half image sides.
        y: The same downwards.
        fields: The images' rough fields, [n, 2, h, w].
        image: Which image each shape is in, int64 [m].
        radius: Of the shapes in half image sides, [m]; shading scales with it.
        draws: NUM_FILL_DRAWS uniform numbers per shape.
        plain_share: Share of the shapes that are of their first colour all over.
    """
    is_plain = draws.chance(plain_share)
    level = torch.where(is_plain, 0.0, draws.between(0.25, 0.75))
    value = _shading(x, y, level, radius, is_plain, draws)
    _add_stripes(value, x, y, is_plain, draws)
    _add_roughness(value, fields, image, is_plain, draws)
    return value.clamp_(0, 1)


def _maps(numbers: torch.Tensor) -> torch.Tensor:
    """Make one number per shape broadcast over pixels."""
    return numbers[:, None, None]


def _shading(
    x: torch.Tensor, y: torch.Tensor, level: torch.Tensor, radius: torch.Tensor, is_plain: torch.Tensor, draws: Cursor
) -> torch.Tensor:
    """Start at `level` and grow along a direction, as under light from one side."""
    angle, strength = draws.between(0, 2 * math.pi), draws.between(0, 0.7)
    strength = strength * draws.chance(0.6) * ~is_plain / radius.clamp_min(0.2)
    value = torch.addcmul(_maps(level), x, _maps(strength * angle.cos()))
    return value.addcmul_(y, _maps(strength * angle.sin()))


def _add_stripes(value: torch.Tensor, x: torch.Tensor, y: torch.Tensor, is_plain: torch.Tensor, draws: Cursor) -> None:
    """Add gratings from soft to hard edges; some crossed by a second one at a right angle, which gives checks."""
    angle, phase, cross_phase = draws.between(0, math.pi), draws.between(0, 2 * math.pi), draws.between(0, 2 * math.pi)
    angle = torch.where(draws.chance(0.5), (angle / math.pi * 4).floor() * math.pi / 4, angle)
    frequency = 3 * torch.exp(draws.between(0, math.log(8)))
    hardness, strength = 0.6 + 4 * draws.take().pow(3), draws.between(0.1, 0.5)
    kind = draws.choice(0.5, 0.35, 0.15) * ~is_plain
    for is_crossed in (False, True):
        chosen = (kind == 1 + is_crossed).nonzero()[:, 0]
        waves = _waves(x, y, chosen, angle, frequency, phase)
        if is_crossed:
            waves *= _waves(x, y, chosen, angle + math.pi / 2, frequency, cross_phase)
        waves.mul_(_maps(hardness[chosen])).clamp_(-1, 1)
        value.index_add_(0, chosen, waves.mul_(_maps(strength[chosen])))


def _waves(
    x: torch.Tensor,
    y: torch.Tensor,
    chosen: torch.Tensor,
    angle: torch.Tensor,
    frequency: torch.Tensor,
    phase: torch.Tensor,
) -> torch.Tensor:
    """Return plane sine waves in the chosen shapes' coordinates."""
    across, down = (frequency * angle.cos())[chosen], (frequency * angle.sin())[chosen]
    waves = torch.addcmul(_maps(phase[chosen]), x[chosen], _maps(across))
    return waves.addcmul_(y[chosen], _maps(down)).sin_()


def _add_roughness(
    value: torch.Tensor, fields: torch.Tensor, image: torch.Tensor, is_plain: torch.Tensor, draws: Cursor
) -> None:
    """Add a mix of the image's two fields, so that shapes of one image differ in texture though not in grain."""
    strength, is_rough, mix = draws.between(0, 0.35), draws.chance(0.6), draws.between(0, 2 * math.pi)
    chosen = (is_rough & ~is_plain).nonzero()[:, 0]
    rough = fields[image[chosen]]
    first, second = strength[chosen] * mix[chosen].cos(), strength[chosen] * mix[chosen].sin()
    value.index_add_(0, chosen, (rough[:, 0] * _maps(first)).addcmul_(rough[:, 1], _maps(second)))
