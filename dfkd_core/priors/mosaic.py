"""Held-out images: Voronoi mosaics and bands of warped fields, in lumps on a ground or over the whole image.

They measure a student without data: no method trains on this family, and it shares no code with the other priors'
shapes and textures, so that agreement on it is not agreement on training images. The lumps are level sets of Gaussian
bumps (Blinn, "A generalization of algebraic surface drawing", ACM TOG 1982).

n images, c channels, h height, w width. Lengths are in half image sides, the image's centre is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.pixels import PixelPrior, paint_in_chunks

__all__ = ["MOST_CELLS", "MosaicPrior", "paint_cells", "pixel_centres"]

MOST_CELLS = 16
"""Colours of a mosaic at most."""
_NUM_BUMPS = 5
_NUM_WAVES = 5
_LEAST_CONTRAST = 0.25


class MosaicPrior(PixelPrior):
    """Mosaics and bands, two thirds of them in a lump on a ground; any number of channels and any size."""

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw and paint images, see `ImagePrior.start`."""
        channels, height, width = self._image_shape

        def paint(indices: Sequence[int]) -> torch.Tensor:
            rows = uniform_rows(seed, stream, indices, (_num_draws(channels),))
            return _paint(Cursor(rows), (height, width), channels)

        return paint_in_chunks(paint, image_indices, self._image_shape)


def _num_draws(channels: int) -> int:
    """Return the uniform numbers that one image takes."""
    fields, cells, bands = 3 * (1 + 3 * _NUM_WAVES), 4 + MOST_CELLS * (3 + channels), 4 + 2 * (1 + channels)
    return fields + 3 + cells + bands + 5 + 3 * _NUM_BUMPS + 4 + channels


def _paint(draws: Cursor, size: tuple[int, int], channels: int) -> torch.Tensor:
    """Return images [n, c, h, w] in [0, 1]."""
    half_side = min(size) / 2
    x, y = pixel_centres(*size)
    field, first, second = (_field(x, y, draws) for _ in range(3))
    strength = _maps(draws.between(0, 0.25) * draws.chance(0.6))
    x, y = x + strength * first, y + strength * second
    x = torch.where(_maps(draws.chance(0.3)), x.abs(), x)
    cells = paint_cells(x, y, half_side, channels, draws)
    bands, shade = _bands(x, y, field, half_side, channels, draws)
    cover = _lump(x, y, field, half_side, draws)
    kind, is_lump = draws.choice(2, 2, 2)[:, None, None, None], draws.chance(0.67)[:, None, None, None]
    inside = torch.where(kind == 0, cells, torch.where(kind == 1, bands, cells + shade))
    # A quarter of the lumps are on black, a quarter on white, the others on any colour.
    level = draws.choice(1, 1, 2)
    tint = 0.4 * (draws.take(channels) - 0.5) * (level == 2)[:, None]
    level = torch.where(level == 2, draws.take(), level.float())
    ground = (level[:, None] + tint)[:, :, None, None].clamp(0, 1)
    lumps = torch.lerp(ground.expand_as(inside), _kept_off(inside, ground), cover)
    return torch.where(is_lump, lumps, inside).clamp_(0, 1)


def _maps(numbers: torch.Tensor) -> torch.Tensor:
    """Reshape one number per image so that it broadcasts over pixels."""
    return numbers[:, None, None]


def pixel_centres(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [1, 1, w] and y [1, h, 1] of the pixels' centres; the shorter side spans [-1, 1]."""
    half_side = min(height, width) / 2
    x = (torch.arange(width) + 0.5 - width / 2) / half_side
    y = (torch.arange(height) + 0.5 - height / 2) / half_side
    return x[None, None], y[None, :, None]


def _field(x: torch.Tensor, y: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return a smooth field [n, h, w] of mean square about 1: plane waves of at most two cycles a side."""
    fastest = draws.between(1.5, 6.5)[:, None]
    speed = fastest * (0.3 + 0.7 * draws.take(_NUM_WAVES))
    angle, phase = 2 * math.pi * draws.take(_NUM_WAVES), 2 * math.pi * draws.take(_NUM_WAVES)
    across, down = speed * angle.cos(), speed * angle.sin()
    waves = [(_maps(across[:, k]) * x + (_maps(down[:, k]) * y + _maps(phase[:, k]))).cos() for k in range(_NUM_WAVES)]
    field: torch.Tensor = torch.stack(waves).sum(0) * (2 / _NUM_WAVES) ** 0.5
    return field


def paint_cells(x: torch.Tensor, y: torch.Tensor, half_side: float, channels: int, draws: Cursor) -> torch.Tensor:
    """Return Voronoi mosaics [n, c, h, w] of 3 to MOST_CELLS cells; some with joints between the cells.

    Args:
        x: Positions of the pixels to the right of the image's centre, [n, h, w].
        y: Positions below it, [n, h, w].
        half_side: Pixels of half the shorter side.
        channels: c.
        draws: In this order the number of cells, how far from the centre they reach, the width of the joints, whether
            there are any, MOST_CELLS positions to the right, as many below, as many grey levels, and tints.
    """
    count = 3 + (draws.take().square() * (MOST_CELLS - 2)).floor()
    reach, joint = draws.between(0.7, 1.3)[:, None], draws.between(0.03, 0.1) * draws.chance(0.4)
    centres = (2 * draws.take(2, MOST_CELLS) - 1) * reach[:, None]
    brightness, tint = draws.take(MOST_CELLS), draws.take(MOST_CELLS, channels)
    absent = torch.arange(MOST_CELLS) >= count[:, None]
    pixels = torch.stack([x, y.expand_as(x)], 1).flatten(2)
    # In |p - q|^2 the part |p|^2 is equal for all centres q, so it is only added to the two smallest.
    offset = centres.square().sum(1).masked_fill(absent, math.inf)[:, :, None]
    distance = torch.baddbmm(offset, centres.mT, pixels, alpha=-2)
    nearest, which = distance.min(1, keepdim=True)
    next_nearest, next_which = distance.scatter_(1, which, math.inf).min(1, keepdim=True)
    near = (torch.cat([nearest, next_nearest], 1) + pixels.square().sum(1, keepdim=True)).clamp_min_(0).sqrt_()
    gap = (near[:, 1] - near[:, 0]).view_as(x) / 2
    which = torch.cat([which, next_which], 1)
    colours = (brightness[:, :, None] + 0.5 * (tint - tint.mean(2, keepdim=True))).clamp(0, 1).mT
    picked = colours.gather(2, which.flatten(1)[:, None].expand(-1, channels, -1)).view(
        len(x), channels, 2, *x.shape[1:]
    )
    # On a border both cells count equally; half a pixel away only the nearer one counts.
    share = (0.5 + gap * half_side).clamp_max_(1)[:, None]
    mosaic = torch.lerp(picked[:, :, 1], picked[:, :, 0], share)
    in_joint = ((_maps(joint) - gap) * half_side + 0.5).clamp_(0, 1) * _maps(joint > 0)
    return mosaic * (1 - in_joint[:, None])


def _bands(
    x: torch.Tensor, y: torch.Tensor, field: torch.Tensor, half_side: float, channels: int, draws: Cursor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [n, c, h, w] of bands between two colours, and a shade [n, 1, h, w] from the same bands.

    The bands follow the level sets of a ramp bent by the field, from one soft wave to many hard stripes.
    """
    angle, bend = draws.between(0, 2 * math.pi), draws.between(0.1, 0.8)
    # At least six pixels a period, so that stripes do not alias.
    frequency = torch.exp(draws.take() * math.log(max(2.0, half_side / 6))) * math.pi
    hardness = 0.5 + 4 * draws.take().square()
    ramp = _maps(angle.cos()) * x + _maps(angle.sin()) * y + _maps(bend) * field
    wave = ((ramp * _maps(frequency)).sin() * _maps(hardness)).clamp_(-1, 1)[:, None]
    brightness, tint = draws.take(2), draws.take(2, channels)
    second = torch.where(
        (brightness[:, 1] - brightness[:, 0]).abs() < _LEAST_CONTRAST, (brightness[:, 0] + 0.5) % 1, brightness[:, 1]
    )
    colours = torch.stack([brightness[:, 0], second], 1)[:, :, None] + 0.5 * (tint - tint.mean(2, keepdim=True))
    low, high = colours.clamp(0, 1)[..., None, None].unbind(1)
    return low + (high - low) * (0.5 + 0.5 * wave), 0.25 * wave


def _lump(x: torch.Tensor, y: torch.Tensor, field: torch.Tensor, half_side: float, draws: Cursor) -> torch.Tensor:
    """Return how much of each pixel a lump covers, [n, 1, h, w]: a chain of bumps about the centre."""
    angle, length, thickness = draws.between(0, math.pi), draws.between(0, 0.9), draws.between(0.3, 0.6)
    roughness, is_level = draws.between(0, 0.5), draws.chance(0.5)
    angle = torch.where(is_level, (angle / math.pi * 2).floor() * math.pi / 2, angle)
    along, off, swell = (2 * draws.take(3, _NUM_BUMPS) - 1).unbind(1)
    along, off = along * length[:, None], 0.2 * off
    centre_x = along * angle.cos()[:, None] - off * angle.sin()[:, None]
    centre_y = along * angle.sin()[:, None] + off * angle.cos()[:, None]
    radius = thickness[:, None] * (1 + 0.6 * swell)
    height = torch.zeros(())
    for bump in range(_NUM_BUMPS):
        squared = (x - _maps(centre_x[:, bump])).square() + (y - _maps(centre_y[:, bump])).square()
        height = height + (squared * _maps(-(radius[:, bump] ** -2))).exp_()
    # The logarithm of the height falls off roughly like a distance, in units of half the thickness.
    level = height.clamp_min(1e-6).log() + _maps(roughness) * field
    return ((level * _maps(thickness / 2)) * half_side + 0.5).clamp_(0, 1)[:, None]


def _kept_off(inside: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    """Shift the images whose mean brightness is that of their ground to the other end of the grey scale."""
    mean, level = inside.mean((1, 2, 3), keepdim=True), ground.mean(1, keepdim=True)
    shift = torch.where(level < 0.5, _LEAST_CONTRAST, -_LEAST_CONTRAST)
    return torch.where((mean - level).abs() < _LEAST_CONTRAST, inside + shift, inside)
