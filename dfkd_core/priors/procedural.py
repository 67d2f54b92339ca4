"""Procedural images: layers of generic shapes that occlude each other ("dead leaves"), without any data.

After Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001, and Baradad et al., "Learning to see by
looking at noise", NeurIPS 2021.

n images, m shapes over all images, c channels, h height, w width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.blurring import blur_maps
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fills import fill_maps, rough_fields
from dfkd_core.priors.pixels import PixelPrior, paint_in_chunks
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

__all__ = ["ProceduralPrior", "num_painting_draws", "paint_scenes"]

_PLAIN_SHARE = 0.35
_Inside = Callable[[torch.Tensor], torch.Tensor]


class ProceduralPrior(PixelPrior):
    """Images of occluding shapes; refinement then optimises their pixels [n, c, h, w]."""

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw and paint images, see `ImagePrior.start`."""
        channels, height, width = self._image_shape

        def paint(indices: Sequence[int]) -> torch.Tensor:
            rows = uniform_rows(seed, stream, indices, (num_painting_draws(self._image_shape),))
            return paint_scenes(rows, (height, width), channels)

        return paint_in_chunks(paint, image_indices, self._image_shape)


def num_painting_draws(image_shape: tuple[int, int, int]) -> int:
    """Return the uniform numbers that one image of shape (c, h, w) takes: scene, shapes, and two per pixel."""
    channels, height, width = image_shape
    return num_scene_draws(channels) + MAX_SHAPES * num_shape_draws(channels) + 2 * height * width


def paint_scenes(
    rows: torch.Tensor, size: tuple[int, int], channels: int, *, materials: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn uniform numbers into images.

    Args:
        rows: Uniform numbers [n, num_painting_draws((c, h, w))] in [0, 1).
        size: (h, w) in pixels.
        channels: c.
        materials: Two pictures per image in [0, 1], [n, 2, c, h, w]. A ground of two colours is then the first picture.
            Shapes that are not plain are cut out of the second or, every other layer, the first, and shifted to their
            own brightness. Without materials, grounds and shapes have drawn fills.

    Returns:
        [n, c, h, w] in [0, 1].
    """
    num_white = 2 * size[0] * size[1]
    white = rows[:, -num_white:].view(-1, 2, *size)
    split = num_scene_draws(channels)
    scene = plan_scenes(rows[:, :split], channels)
    shapes = place_shapes(rows[:, split:-num_white].view(len(rows), MAX_SHAPES, -1), scene, channels)
    fields = rough_fields(white, scene.field_exponent)
    x, y = _coordinates(*size)
    if materials is None:
        canvas = _drawn_ground(scene, torch.stack([x.expand_as(white[:, 0]), y.expand_as(white[:, 0])], 1), fields)
    else:
        canvas = _material_ground(scene, materials)
    if len(shapes.image):
        carriers = torch.cat([_bend(x, y, scene, fields), fields], 1).index_select(0, shapes.image)
        covers = _covers(carriers[:, :2], shapes, scene)
        draws = Cursor(shapes.fill)
        if materials is None:
            fills = fill_maps(carriers, shapes.centre, shapes.radius, draws, plain_share=_PLAIN_SHARE)
            inside = functools.partial(_filled, shapes, fills)
        else:
            inside = functools.partial(_cut_out, shapes, materials, draws.chance(_PLAIN_SHARE))
        _stack(canvas, covers, inside, shapes, scene)
    return _finish(canvas, white[:, 0], scene)


def _drawn_ground(scene: Scene, coordinates: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
    """Return grounds [n, c, h, w] with drawn fills."""
    carriers = torch.cat([coordinates, fields], 1)
    centre, radius = torch.zeros(len(carriers), 2), torch.ones(len(carriers))
    ground = fill_maps(carriers, centre, radius, Cursor(scene.ground_fill), plain_share=0)
    return _colour(scene.ground_colours, ground)


def _filled(shapes: Shapes, fills: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the insides of the chosen shapes, [k, c, h, w]: drawn fills between their two colours."""
    return _colour(shapes.colours[chosen], fills.index_select(0, chosen))


def _cut_out(shapes: Shapes, materials: torch.Tensor, is_plain: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the insides of the chosen shapes, [k, c, h, w]: parts of a picture around their own brightness."""
    colour = shapes.colours[chosen, 0, :, None, None]
    picture = materials[shapes.image[chosen], (1 + shapes.layer[chosen]) % 2]
    picture = picture + (colour - picture.mean((1, 2, 3), keepdim=True)).mean(1, keepdim=True)
    return torch.where(is_plain[chosen, None, None, None], colour, picture).clamp_(0, 1)


def _material_ground(scene: Scene, materials: torch.Tensor) -> torch.Tensor:
    """Return grounds [n, c, h, w]: one colour if the scene has a plain ground, else a picture."""
    first, second = scene.ground_colours[..., None, None].unbind(1)
    is_plain = (first == second).all(1, keepdim=True)
    return torch.where(is_plain, first, materials[:, 0])


def _coordinates(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y [h, w] of the pixels' centres; the shorter side spans [-1, 1]."""
    scale = 2 / min(height, width)
    y = (torch.arange(height) + 0.5 - height / 2) * scale
    x = (torch.arange(width) + 0.5 - width / 2) * scale
    return x.expand(height, width), y[:, None].expand(height, width)


def _bend(x: torch.Tensor, y: torch.Tensor, scene: Scene, fields: torch.Tensor) -> torch.Tensor:
    """Return each image's x and y [n, 2, h, w]: displaced by its smooth fields, and folded if it is mirrored."""
    # Rough fields would tear outlines apart, so the displacement shrinks with their roughness.
    strength = (scene.warp * (scene.field_exponent / 2).square())[:, None, None]
    bent_x, bent_y = x + strength * fields[:, 0], y + strength * fields[:, 1]
    folded = scene.is_mirrored[:, None, None]
    return torch.stack([torch.where(folded, bent_x.abs(), bent_x), bent_y], 1)


def _covers(coordinates: torch.Tensor, shapes: Shapes, scene: Scene) -> torch.Tensor:
    """Return how much of each pixel each shape covers, [m, h, w] in [0, 1], in shape order."""
    height, width = coordinates.shape[2:]
    local = _local_coordinates(coordinates.flatten(2), shapes).view_as(coordinates)
    distance, first = torch.empty_like(local[:, 0]), 0
    for outline, count in zip(OUTLINES, shapes.kind_counts):
        part = slice(first, first + count)
        if count:
            distance[part] = outline(local[part], Cursor(shapes.outline[part]))
        first += count
    hollow = shapes.wall.nonzero()[:, 0]
    wall = shapes.wall[hollow, None, None]
    distance[hollow] = (distance[hollow] + wall).abs_() - wall
    pixels = shapes.radius * shapes.stretch.clamp_max(1) * min(height, width) / 2
    return distance.mul_(-(pixels / scene.softness[shapes.image])[:, None, None]).add_(0.5).clamp_(0, 1)


def _local_coordinates(coordinates: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """Turn x and y [m, 2, h w] into coordinates along and across each shape's axis, in radii."""
    cosine, sine = shapes.angle.cos(), shapes.angle.sin()
    along, across = torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1) / shapes.stretch[:, None]
    turn = torch.stack([along, across], 1) / shapes.radius[:, None, None]
    return torch.baddbmm(-(turn @ shapes.centre[:, :, None]), turn, coordinates)


def _colour(colours: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return maps [m, c, h, w] between two colours [m, 2, c] at `position` [m, h, w] in [0, 1]."""
    low, high = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return torch.addcmul(low, high - low, position[:, None])


def _stack(canvas: torch.Tensor, covers: torch.Tensor, inside: _Inside, shapes: Shapes, scene: Scene) -> None:
    """Paint the shapes onto `canvas` in the order of their layers; clipped ones only within the first shape."""
    first_cover = torch.ones_like(canvas[:, 0])
    for layer in range(MAX_SHAPES):
        chosen = (shapes.layer == layer).nonzero()[:, 0]
        if not len(chosen):
            return
        image, cover = shapes.image[chosen], covers.index_select(0, chosen)
        if layer == 0:
            first_cover[image] = torch.where(scene.is_clipped[image][:, None, None], cover, 1.0)
        else:
            cover.mul_(first_cover.index_select(0, image))
        beneath = canvas.index_select(0, image)
        canvas.index_copy_(0, image, beneath.lerp_(inside(chosen), cover[:, None]))


def _finish(canvas: torch.Tensor, white: torch.Tensor, scene: Scene) -> torch.Tensor:
    """Blur, tone and add grain, like a lens and a sensor."""
    canvas = blur_maps(canvas, scene.blur)
    canvas = (canvas - 0.5) * scene.gain[:, None, None, None] + (0.5 + scene.offset)[:, None, None, None]
    return (canvas + ((white - 0.5) * scene.grain[:, None, None])[:, None]).clamp_(0, 1)
