"""Families of pictures that a formula makes of coordinates and noise, as fragment shaders do.

After Baradad et al., "Procedural image programs for representation learning", NeurIPS 2022, whose programs were
collected from authors of shaders. These are families with drawn parameters instead.

m pictures, c channels, h height, w width. Lengths are in half image sides, the image's centre is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.priors.draws import Cursor

__all__ = ["FAMILIES", "NUM_FIELDS", "Canvas", "num_family_draws"]

NUM_FIELDS = 4
"""Random fields that a picture takes."""
_NUM_COLOURS = 6
_NUM_UNITS = 12
_NUM_ITERATIONS = 24
_NUM_SOLIDS = 5
_NUM_STROKES = 6
_NUM_POINTS = 12
# A chroma that is common to a picture's colours, and one of each colour, as shares of the range.
_COMMON_CHROMA, _OWN_CHROMA = 0.18, 0.16


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where pictures are painted, and the numbers that they are painted from."""

    x: Tensor
    """Positions of the pixels to the right of the centre, [m, h, w]."""
    y: Tensor
    """Positions of the pixels below the centre, [m, h, w]."""
    fields: Tensor
    """Random fields of mean 0 and standard deviation 1, [m, NUM_FIELDS, h, w]."""
    draws: Cursor
    """`num_family_draws(channels)` uniform numbers per picture."""
    channels: int

    def log_between(self, low: float, high: float) -> Tensor:
        """Return the next number on a logarithmic scale from `low` to `high`, [m, 1, 1]."""
        return _maps(torch.exp(self.draws.between(math.log(low), math.log(high))))

    def map_between(self, low: float, high: float) -> Tensor:
        """Return the next number scaled to [low, high), [m, 1, 1]."""
        return _maps(self.draws.between(low, high))

    def if_chance(self, probability: float) -> Tensor:
        """Return whether the next number falls below `probability`, bool [m, 1, 1]."""
        return _maps(self.draws.chance(probability))


def num_family_draws(channels: int) -> int:
    """Return the uniform numbers that a picture of any family takes at most."""
    solid, colours = 16 + _num_colour_draws(2, channels), _num_colour_draws(_NUM_COLOURS, channels)
    network = _NUM_UNITS * (3 * (_NUM_UNITS + 3)) + (_NUM_UNITS + 1) * channels + 20
    return max(network, _NUM_SOLIDS * solid + 10) + colours + 12


def _maps(numbers: Tensor) -> Tensor:
    return numbers[:, None, None]


def _signed(draws: Cursor, *shape: int) -> Tensor:
    """Return numbers of mean 0 and standard deviation 1, uniform, [m, *shape]."""
    return (2 * draws.take(*shape) - 1) * math.sqrt(3)


def _num_colour_draws(count: int, channels: int) -> int:
    return count + (count + 1) * channels + 1


def _colours(draws: Cursor, count: int, channels: int) -> Tensor:
    """Return colours [m, count, c]: brightness varies most, then a chroma that they share, as in photographs."""
    brightness, strength = draws.take(count, 1), draws.take(1, 1)
    common, own = _signed(draws, 1, channels), _signed(draws, count, channels)
    chroma = _COMMON_CHROMA * strength * common + _OWN_CHROMA * own
    return (brightness + chroma - chroma.mean(2, keepdim=True)).clamp(0, 1)


def _unit(field: Tensor) -> Tensor:
    """Stretch each map [m, h, w] to [0, 1]."""
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return (field - low) / (high - low).clamp_min(1e-6)


def _through_palette(canvas: Canvas, level: Tensor) -> Tensor:
    """Return pictures [m, c, h, w] whose colour depends on the level [m, h, w] in [0, 1]; some palettes have steps."""
    draws = canvas.draws
    colours = _colours(draws, _NUM_COLOURS, canvas.channels)
    by_brightness = colours.gather(1, colours.mean(2).argsort(1)[:, :, None].expand_as(colours))
    colours = torch.where(draws.chance(0.5)[:, None, None], by_brightness, colours)
    place = level.clamp(0, 1) * (_NUM_COLOURS - 1)
    below = place.floor().clamp_max(_NUM_COLOURS - 2)
    share = place - below
    share = torch.where(canvas.if_chance(0.25), (share > 0.5).float(), share)
    index = below.long().flatten(1)[:, None].expand(-1, canvas.channels, -1)
    low, high = colours.mT.gather(2, index), colours.mT.gather(2, index + 1)
    return torch.lerp(low, high, share.flatten(1)[:, None]).view(len(level), canvas.channels, *level.shape[1:])


def _zoomed(canvas: Canvas, nearest: float, farthest: float) -> tuple[Tensor, Tensor]:
    """Return turned, scaled and shifted coordinates, [m, h, w] each."""
    angle, scale = canvas.map_between(0, 2 * math.pi), canvas.log_between(nearest, farthest)
    across, down = _maps(_signed(canvas.draws)), _maps(_signed(canvas.draws))
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    return canvas.x * cosine - canvas.y * sine + across, canvas.x * sine + canvas.y * cosine + down


def _random_networks(canvas: Canvas) -> Tensor:
    """Small networks of waves, bumps and ramps with random weights, from coordinates to colours.

    After Stanley, "Compositional pattern producing networks", 2007.
    """
    draws, channels = canvas.draws, canvas.channels
    x, y = _zoomed(canvas, 0.6, 4.0)
    noise = canvas.fields[:, :2] * canvas.map_between(0, 0.5)[:, None]
    values = torch.cat([torch.stack([x, y, (x.square() + y.square()).sqrt()], 1), noise], 1).flatten(2)
    for _ in range(3):
        inputs = values.shape[1]
        scale = canvas.log_between(0.7, 3.0) / math.sqrt(inputs)
        sums = torch.baddbmm(_signed(draws, _NUM_UNITS, 1), _signed(draws, _NUM_UNITS, inputs) * scale, values)
        kind = (draws.take(_NUM_UNITS, 1) * 4).floor()
        bumps = torch.exp(-sums.square()) * 2 - 1
        ramps = torch.where(kind == 2, bumps, sums.abs().clamp_max(3) - 1)
        values = torch.where(kind == 0, sums.sin(), torch.where(kind == 1, sums.tanh(), ramps))
    weights, saturation = _signed(draws, channels, _NUM_UNITS) / math.sqrt(_NUM_UNITS), canvas.map_between(0.2, 1)
    weights = torch.lerp(weights.mean(1, keepdim=True) * math.sqrt(channels), weights, saturation)
    outputs = torch.baddbmm(0.5 * _signed(draws, channels, 1), weights, values, alpha=1.6)
    return torch.sigmoid(outputs).view(-1, channels, *x.shape[1:])


def _warped_noise(canvas: Canvas) -> Tensor:
    """A rough field, displaced by two others, through a palette."""
    strength = canvas.map_between(0, 0.35)
    moved = torch.stack([canvas.x + strength * canvas.fields[:, 0], canvas.y + strength * canvas.fields[:, 1]], 3)
    # Positions of `grid_sample` are in half sides of each axis, ours in half of the shorter side.
    height, width = canvas.x.shape[1:]
    moved = moved * torch.tensor([min(height, width) / width, min(height, width) / height])
    field = functional.grid_sample(canvas.fields[:, 2:3], moved, padding_mode="reflection", align_corners=False)[:, 0]
    waves = 0.5 + 0.5 * (canvas.log_between(0.5, 4) * field).sin()
    return _through_palette(canvas, torch.where(canvas.if_chance(0.4), waves, _unit(field)))


def _julia_sets(canvas: Canvas) -> Tensor:
    """Julia sets of z^2 + k: the time to escape, or the smallest distance to the axes (Pickover's stalks)."""
    scale = canvas.log_between(0.2, 1.6)
    across, down = 0.2 * _maps(_signed(canvas.draws)), 0.2 * _maps(_signed(canvas.draws))
    x, y = canvas.x * scale + across, canvas.y * scale + down
    angle, radius = canvas.map_between(0, 2 * math.pi), canvas.map_between(0.3, 1.1)
    real, imaginary = radius * angle.cos(), radius * angle.sin()
    steps, stalks = torch.zeros_like(x), torch.full_like(x, 2.0)
    for _ in range(_NUM_ITERATIONS):
        x, y = x.square() - y.square() + real, 2 * x * y + imaginary
        is_inside = x.square() + y.square() < 16
        steps += is_inside
        stalks = torch.minimum(stalks, torch.where(is_inside, (x * y).abs() + 0.1 * x.abs(), 2.0))
        x, y = torch.where(is_inside, x, 4.0), torch.where(is_inside, y, 0.0)
    level = torch.where(canvas.if_chance(0.5), steps / _NUM_ITERATIONS, _unit(stalks.sqrt()))
    return _through_palette(canvas, level)


def _interference(canvas: Canvas) -> Tensor:
    """Two gratings, one of them ring-shaped in some pictures: added, multiplied, or the larger of both."""
    x, y = _zoomed(canvas, 0.6, 2.0)
    bend = canvas.map_between(0, 0.4)
    x, y = x + bend * canvas.fields[:, 0], y + bend * canvas.fields[:, 1]
    first = (canvas.log_between(1, 9) * x + canvas.map_between(0, 2 * math.pi)).sin()
    second_axis = torch.where(canvas.if_chance(0.4), (x.square() + y.square()).sqrt(), y)
    second = (canvas.log_between(1, 9) * second_axis + canvas.map_between(0, 2 * math.pi)).sin()
    kind = _maps(canvas.draws.choice(1, 1, 1, 1))
    ways = torch.stack([first, first * second, torch.maximum(first, second), first + second])
    level = ways.gather(0, kind.expand_as(first)[None])[0]
    return _through_palette(canvas, torch.sigmoid(canvas.log_between(0.7, 12) * level))


def _lit_solids(canvas: Canvas) -> Tensor:
    """Rounded solids under a light, with texture, gloss and shadow, on a ground."""
    draws, fields, channels = canvas.draws, canvas.fields, canvas.channels
    shorter = min(canvas.x.shape[1:])
    tilt = canvas.map_between(0, 0.5)
    picture = _through_palette(canvas, _unit(canvas.y + tilt * fields[:, 3]))
    light = _signed(draws, 3) + torch.tensor([0, -1.0, 1.2])
    light = (light / light.norm(dim=1, keepdim=True).clamp_min(1e-6))[:, :, None, None]
    for number in range(_NUM_SOLIDS):
        is_first = number == 0
        is_there = canvas.if_chance(1.0 if is_first else 0.55).float()
        reach, sizes = (0.28, (0.45, 0.9)) if is_first else (0.7, (0.12, 0.5))
        across, down = canvas.map_between(-reach, reach), canvas.map_between(-reach, reach)
        size, angle = canvas.log_between(*sizes), canvas.map_between(0, math.pi)
        stretch = torch.exp(0.4 * _maps(_signed(draws)))
        right, below = canvas.x - across, canvas.y - down
        u = (right * angle.cos() + below * angle.sin()) / (size * stretch)
        v = (below * angle.cos() - right * angle.sin()) * stretch / size
        # From rhombi over ellipses to rectangles, with a rough rim.
        power, texture = canvas.log_between(1.2, 7), fields[:, number % NUM_FIELDS]
        distance = (u.abs() ** power + v.abs() ** power + 1e-9) ** (1 / power)
        distance = distance + canvas.map_between(0, 0.08) * texture
        depth = (1 - distance.clamp(0, 1).square()).clamp_min(0).sqrt() + 0.15
        normal = torch.stack([u, v, depth], 1)
        lit = ((normal / normal.norm(dim=1, keepdim=True)) * light).sum(1).clamp_min(0)
        gloss = canvas.map_between(0, 0.7) * lit ** canvas.log_between(4, 40)
        low, high = _colours(draws, 2, channels)[..., None, None].unbind(1)
        colour = torch.lerp(low, high, torch.sigmoid(3 * canvas.map_between(0, 1) * texture)[:, None])
        shaded = (colour * (0.25 + 0.85 * lit[:, None]) + gloss[:, None]).clamp(0, 1)
        colour = torch.where(canvas.if_chance(0.25)[:, None], colour, shaded)
        shadow = (0.35 * ((1.15 - distance) * shorter * 0.05).clamp(0, 1) * is_there).roll((1, 1), (1, 2))
        cover = ((1 - distance) * shorter * 0.25 + 0.5).clamp(0, 1) * is_there
        picture = torch.lerp(picture * (1 - shadow[:, None]), colour, cover[:, None])
    return picture


def _coloured_noise(canvas: Canvas) -> Tensor:
    """Clouds from white to smooth, grey to colourful."""
    fields = canvas.fields[:, torch.arange(canvas.channels) % NUM_FIELDS]
    grey = fields.mean(1, keepdim=True) * math.sqrt(min(canvas.channels, NUM_FIELDS))
    fields = torch.lerp(grey, fields, canvas.map_between(0.1, 1)[:, None])
    level = 0.5 + 0.15 * _signed(canvas.draws, canvas.channels)[:, :, None, None]
    return (level + canvas.map_between(0.09, 0.31)[:, None] * fields).clamp(0, 1)


def _strokes(canvas: Canvas) -> Tensor:
    """Curved strokes (quadratic Bezier curves as chains of discs) over a cloud."""
    draws = canvas.draws
    shorter = min(canvas.x.shape[1:])
    picture = _through_palette(canvas, _unit(canvas.fields[:, 0]))
    time = torch.linspace(0, 1, _NUM_POINTS)
    weights = torch.stack([(1 - time).square(), 2 * time * (1 - time), time.square()])
    for _ in range(_NUM_STROKES):
        points = (2.2 * draws.take(2, 3) - 1.1) @ weights
        width, is_there = canvas.log_between(0.03, 0.25), canvas.if_chance(0.7).float()
        distance = torch.full_like(canvas.x, math.inf)
        for point in range(_NUM_POINTS):
            right, below = canvas.x - _maps(points[:, 0, point]), canvas.y - _maps(points[:, 1, point])
            distance = torch.minimum(distance, right.square() + below.square())
        cover = ((width - distance.sqrt()) * shorter * 0.5 + 0.5).clamp(0, 1) * is_there
        colour = _colours(draws, 1, canvas.channels)[:, 0, :, None, None]
        picture = torch.lerp(picture, colour.expand_as(picture), cover[:, None])
    return picture


FAMILIES: tuple[Callable[[Canvas], Tensor], ...] = (
    _random_networks,
    _warped_noise,
    _julia_sets,
    _interference,
    _lit_solids,
    _coloured_noise,
    _strokes,
)
"""Painters of pictures [m, c, h, w] in [0, 1]."""
