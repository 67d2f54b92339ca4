"""Procedural images: layers of generic shapes that occlude each other ("dead leaves"), without any data.

After Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001, and Baradad et al., "Learning to see by
looking at noise", NeurIPS 2021.

n images, m shapes over all images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fills import fill_maps, rough_fields
from dfkd_core.priors.pixels import PixelPrior
from dfkd_core.priors.scene import (
    MAX_SHAPES,
    Scene,
    Shapes,
    num_scene_draws,
    num_shape_draws,
    place_shapes,
    plan_scenes,
)
from dfkd_core.priors.shapes import OUTLINES
from dfkd_core.seeding import uniform_rows

__all__ = ["ProceduralPrior"]

# Small enough for the maps to stay near the core, large enough to hide the cost of each call; measured.
_PIXELS_PER_CHUNK = 2**17


class ProceduralPrior(PixelPrior):
    """Images of occluding shapes; refinement then optimises their pixels [n, c, h, w]."""

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw and paint images, see `ImagePrior.start`."""
        channels, height, width = self._image_shape
        num_fixed = num_scene_draws(channels) + MAX_SHAPES * num_shape_draws(channels)
        chunk = max(1, _PIXELS_PER_CHUNK // (height * width))
        painted = []
        for first in range(0, len(image_indices), chunk):
            indices = image_indices[first : first + chunk]
            rows = uniform_rows(seed, stream, indices, (num_fixed + 2 * height * width,))
            white = rows[:, num_fixed:].view(-1, 2, height, width)
            painted.append(_paint(rows[:, :num_fixed], white, channels))
        return torch.cat(painted) if painted else torch.empty(0, *self._image_shape)


def _paint(rows: torch.Tensor, white: torch.Tensor, channels: int) -> torch.Tensor:
    """Turn uniform numbers into images [n, c, h, w] in [0, 1].

    Args:
        rows: Numbers that decide scenes and shapes, [n, ...].
        white: Numbers for textures and grain, [n, 2, h, w].
        channels: c.
    """
    split = num_scene_draws(channels)
    scene = plan_scenes(rows[:, :split], channels)
    shapes = place_shapes(rows[:, split:].view(len(rows), MAX_SHAPES, -1), scene, channels)
    fields = rough_fields(white, scene.field_exponent)
    flat_x, flat_y = _coordinates(*white.shape[2:])
    x, y = _bend(flat_x, flat_y, scene, fields)
    everywhere = (flat_x.expand_as(x), flat_y.expand_as(y))
    ones = torch.ones(len(rows))
    ground = fill_maps(*everywhere, fields, torch.arange(len(rows)), ones, Cursor(scene.ground_fill), plain_share=0)
    canvas = _colour(scene.ground_colours, ground)
    if len(shapes.image):
        x, y = x[shapes.image] - shapes.x[:, None, None], y[shapes.image] - shapes.y[:, None, None]
        covers = _covers(x, y, shapes, scene)
        fills = fill_maps(x, y, fields, shapes.image, shapes.radius, Cursor(shapes.fill), plain_share=0.35)
        _stack(canvas, covers, fills, shapes, scene)
    return _finish(canvas, white[:, 0], scene)


def _coordinates(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y [h, w] of the pixels' centres; the shorter side spans [-1, 1]."""
    scale = 2 / min(height, width)
    y = (torch.arange(height) + 0.5 - height / 2) * scale
    x = (torch.arange(width) + 0.5 - width / 2) * scale
    return x.expand(height, width), y[:, None].expand(height, width)


def _bend(x: torch.Tensor, y: torch.Tensor, scene: Scene, fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each image's coordinates [n, h, w]: displaced by its smooth fields, and folded where it is mirrored."""
    # Rough fields would tear outlines apart, so the displacement shrinks with their roughness.
    strength = (scene.warp * (scene.field_exponent / 2).square())[:, None, None]
    bent_x, bent_y = x + strength * fields[:, 0], y + strength * fields[:, 1]
    folded = scene.is_mirrored[:, None, None]
    return torch.where(folded, bent_x.abs(), bent_x), bent_y


def _covers(x: torch.Tensor, y: torch.Tensor, shapes: Shapes, scene: Scene) -> torch.Tensor:
    """Return how much of each pixel each shape covers, [m, h, w] in [0, 1], in shape order."""
    height, width = x.shape[1:]
    u, v = _local_coordinates(x, y, shapes)
    distance, first = torch.empty_like(u), 0
    for outline, count in zip(OUTLINES, shapes.kind_counts):
        part = slice(first, first + count)
        if count:
            distance[part] = outline(u[part], v[part], Cursor(shapes.outline[part]))
        first += count
    hollow = shapes.wall.nonzero()[:, 0]
    wall = shapes.wall[hollow, None, None]
    distance[hollow] = (distance[hollow] + wall).abs_() - wall
    pixels = shapes.radius * shapes.stretch.clamp_max(1) * min(height, width) / 2
    return distance.mul_(-(pixels / scene.softness[shapes.image])[:, None, None]).add_(0.5).clamp_(0, 1)


def _local_coordinates(x: torch.Tensor, y: torch.Tensor, shapes: Shapes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates along and across each shape's axis, in radii, [m, h, w] each."""
    across, along = shapes.angle.sin() / shapes.radius, shapes.angle.cos() / shapes.radius
    u = (x * along[:, None, None]).addcmul_(y, across[:, None, None])
    v = (y * (along / shapes.stretch)[:, None, None]).addcmul_(x, -(across / shapes.stretch)[:, None, None])
    return u, v


def _colour(colours: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return maps [m, c, h, w] between two colours [m, 2, c] at `position` [m, h, w] in [0, 1]."""
    low, high = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return low + (high - low) * position[:, None]


def _stack(canvas: torch.Tensor, covers: torch.Tensor, fills: torch.Tensor, shapes: Shapes, scene: Scene) -> None:
    """Paint the shapes onto `canvas` in the order of their layers; clipped ones within the first shape alone."""
    first_cover = torch.ones_like(canvas[:, 0])
    for layer in range(MAX_SHAPES):
        chosen = (shapes.layer == layer).nonzero()[:, 0]
        if not len(chosen):
            return
        image, cover = shapes.image[chosen], covers[chosen]
        if layer == 0:
            first_cover[image] = torch.where(scene.is_clipped[image][:, None, None], cover, 1.0)
        else:
            cover = cover * first_cover[image]
        canvas[image] = torch.lerp(canvas[image], _colour(shapes.colours[chosen], fills[chosen]), cover[:, None])


def _finish(canvas: torch.Tensor, white: torch.Tensor, scene: Scene) -> torch.Tensor:
    """Blur, tone and add grain, as a lens and a sensor do."""
    weight = scene.blur[:, None, None, None]
    canvas = _blur(_blur(canvas, weight, dim=2), weight, dim=3)
    canvas = (canvas - 0.5) * scene.gain[:, None, None, None] + (0.5 + scene.offset)[:, None, None, None]
    return (canvas + ((white - 0.5) * scene.grain[:, None, None])[:, None]).clamp_(0, 1)


def _blur(canvas: torch.Tensor, weight: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Average each pixel with its two neighbours along `dim`; the border repeats."""
    size = canvas.shape[dim]
    before = torch.cat([canvas.narrow(dim, 0, 1), canvas.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([canvas.narrow(dim, 1, size - 1), canvas.narrow(dim, size - 1, 1)], dim)
    return canvas * (1 - 2 * weight) + (before + after) * weight
