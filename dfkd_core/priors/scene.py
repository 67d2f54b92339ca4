"""The layout of a procedural image, drawn from one row of uniform numbers per image.

This module uses no classes and no data sets. It shares these properties with natural images: objects that occlude each
other, sizes without a preferred scale, single things on a ground, parts, symmetry, a preference for level and upright
edges.

n images, m shapes over all images, c channels. Lengths are in half image sides, the image's centre is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fills import NUM_FILL_DRAWS
from dfkd_core.priors.shapes import NUM_OUTLINE_DRAWS, OUTLINE_WEIGHTS

__all__ = ["MAX_SHAPES", "Scene", "Shapes", "num_scene_draws", "num_shape_draws", "place_shapes", "plan_scenes"]

MAX_SHAPES = 14
_LAYOUT_WEIGHTS = (0.45, 0.25, 0.22, 0.08)
_OBJECT, _FEW, _MANY, _NONE = range(4)
_LEAST_CONTRAST = 0.25


def num_scene_draws(channels: int) -> int:
    """Return the uniform numbers that one image takes in addition to its shapes."""
    return 21 + 2 * channels + NUM_FILL_DRAWS


def num_shape_draws(channels: int) -> int:
    """Return the uniform numbers that one shape takes."""
    return 12 + 2 * channels + NUM_OUTLINE_DRAWS + NUM_FILL_DRAWS


@dataclass(frozen=True, slots=True)
class Scene:
    """Properties of whole images, one entry per image."""

    layout: torch.Tensor
    """int64 [n]: one object, a few shapes, many shapes, ground alone."""
    num_shapes: torch.Tensor
    """int64 [n]."""
    is_mirrored: torch.Tensor
    """bool [n], left and right are mirror images."""
    is_clipped: torch.Tensor
    """bool [n], later shapes are visible only within the first."""
    is_one_material: torch.Tensor
    """bool [n], all shapes have the first one's colours."""
    is_level: torch.Tensor
    """bool [n], shapes are level or upright up to a few degrees."""
    warp: torch.Tensor
    """[n], amount by which smooth fields displace the outlines."""
    field_exponent: torch.Tensor
    """[n], fall-off of the rough fields' spectrum."""
    softness: torch.Tensor
    """[n], width of an edge in pixels."""
    saturation: torch.Tensor
    """[n], largest distance between the channels."""
    gain: torch.Tensor
    """[n], contrast about mid-grey at the end."""
    offset: torch.Tensor
    """[n], brightness added at the end."""
    blur: torch.Tensor
    """[n], weight of each neighbouring pixel in a 3-tap blur."""
    grain: torch.Tensor
    """[n], range of the white noise added at the end."""
    ground_colours: torch.Tensor
    """[n, 2, c], the two colours of the ground's fill."""
    ground_fill: torch.Tensor
    """[n, NUM_FILL_DRAWS]."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of all images in one flat list, ordered by kind."""

    image: torch.Tensor
    """int64 [m], index of the shape's image."""
    layer: torch.Tensor
    """int64 [m], 0 is painted first."""
    kind_counts: list[int]
    """Number of shapes of each kind."""
    centre: torch.Tensor
    """[m, 2], x to the right and y downwards."""
    radius: torch.Tensor
    """[m]."""
    angle: torch.Tensor
    """[m], radians."""
    stretch: torch.Tensor
    """[m], size across the shape's axis over size along it."""
    wall: torch.Tensor
    """[m], half the thickness of a hollow shape's wall in radii; 0 for a solid one."""
    colours: torch.Tensor
    """[m, 2, c]."""
    outline: torch.Tensor
    """[m, NUM_OUTLINE_DRAWS]."""
    fill: torch.Tensor
    """[m, NUM_FILL_DRAWS]."""


def plan_scenes(rows: torch.Tensor, channels: int) -> Scene:
    """Draw the properties of whole images from `rows`, uniform [n, num_scene_draws(channels)]."""
    draws = Cursor(rows)
    layout = draws.choice(*_LAYOUT_WEIGHTS)
    is_object = layout == _OBJECT
    saturation = draws.between(0, 0.8)
    is_toned = draws.chance(0.5)
    return Scene(
        layout=layout,
        num_shapes=_num_shapes(layout, draws),
        is_mirrored=draws.take() < torch.where(is_object, 0.5, 0.1),
        is_clipped=is_object & draws.chance(0.5),
        is_one_material=draws.take() < torch.where(is_object, 0.5, 0.1),
        is_level=draws.chance(0.6),
        warp=draws.between(0, 0.14) * draws.chance(0.5),
        field_exponent=draws.between(0.5, 2),
        softness=draws.between(0.8, 2),
        saturation=saturation,
        gain=torch.where(is_toned, draws.between(0.6, 1.6), 1.0),
        offset=draws.between(-0.2, 0.2) * is_toned,
        blur=draws.between(0, 0.3) * draws.chance(0.4),
        grain=draws.between(0, 0.15) * draws.chance(0.3),
        ground_colours=_ground_colours(draws, layout, channels, saturation),
        ground_fill=draws.take(NUM_FILL_DRAWS),
    )


def _num_shapes(layout: torch.Tensor, draws: Cursor) -> torch.Tensor:
    share = draws.take()
    choices = [1 + 6 * share.square(), 2 + 5 * share, 7 + (MAX_SHAPES - 6) * share, torch.zeros_like(share)]
    return torch.stack(choices, 1).long().gather(1, layout[:, None])[:, 0].clamp_max(MAX_SHAPES)


def _ground_colours(draws: Cursor, layout: torch.Tensor, channels: int, saturation: torch.Tensor) -> torch.Tensor:
    """Return black, white or one grey for most images, so that outlines are on a plain ground; else two colours."""
    kind = torch.where(layout == _NONE, 3, draws.choice(0.3, 0.1, 0.2, 0.4))[:, None, None]
    colours = _two_colours(draws, channels, saturation)
    plain = torch.where(kind == 0, 0.0, torch.where(kind == 1, 1.0, colours[:, :1]))
    return torch.where(kind < 3, plain, colours)


def _two_colours(
    draws: Cursor, channels: int, saturation: torch.Tensor, ground: torch.Tensor | None = None
) -> torch.Tensor:
    """Return two colours [m, 2, c]: each has a brightness, and channels around it within the saturation.

    The first, the colour of plain shapes, is kept off the brightness of the `ground` [m], the second off the first.
    """
    first, second, tint = draws.take(), draws.take(), draws.take(2, channels) - 0.5
    first = first if ground is None else _kept_off(first, ground)
    second = _kept_off(second, first)
    tint = (tint - tint.mean(2, keepdim=True)) * saturation[:, None, None]
    return (torch.stack([first, second], 1)[:, :, None] + tint).clamp(0, 1)


def _kept_off(level: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    # Half a turn on the circle of grey levels moves a level at least as far away as required.
    return torch.where((level - other).abs() < _LEAST_CONTRAST, (level + 0.5) % 1, level)


def place_shapes(rows: torch.Tensor, scene: Scene, channels: int) -> Shapes:
    """Draw the shapes from `rows`, uniform [n, MAX_SHAPES, num_shape_draws(channels)]."""
    image, layer = (torch.arange(MAX_SHAPES) < scene.num_shapes[:, None]).nonzero(as_tuple=True)
    kind = Cursor(rows[image, layer]).choice(*OUTLINE_WEIGHTS)
    order = kind.argsort(stable=True)
    image, layer = image[order], layer[order]
    draws = Cursor(rows[image, layer])
    draws.take()
    centre = _centres(draws, scene, image, layer)
    radius = _radii(draws, scene, image, layer)
    angle = _angles(draws, scene, image, layer)
    stretch = torch.exp(draws.between(-0.5, 0.2))
    wall = draws.between(0.04, 0.15) * draws.chance(0.12)
    ground = scene.ground_colours.mean((1, 2))[image]
    colours = _two_colours(draws, channels, scene.saturation[image], ground)
    return Shapes(
        image=image,
        layer=layer,
        kind_counts=torch.bincount(kind, minlength=len(OUTLINE_WEIGHTS)).tolist(),
        centre=centre,
        radius=radius,
        angle=angle,
        stretch=stretch,
        wall=wall,
        colours=_share_material(colours, scene, image, layer),
        outline=draws.take(NUM_OUTLINE_DRAWS),
        fill=draws.take(NUM_FILL_DRAWS),
    )


def _centres(draws: Cursor, scene: Scene, image: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    is_main = (scene.layout[image] == _OBJECT) & (layer == 0)
    spread = torch.tensor([0.7, 0.8, 1.1, 0.0])[scene.layout[image]]
    spread = torch.where(is_main, 0.12, spread)
    x, y = spread * draws.between(-1, 1), spread * draws.between(-1, 1)
    mirrored = scene.is_mirrored[image]
    return torch.stack([torch.where(mirrored, torch.where(is_main, 0.0, x.abs()), x), y], 1)


def _radii(draws: Cursor, scene: Scene, image: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """Return scale-free sizes for crowds, density r^-2 within the bounds, and more even sizes for few shapes."""
    share, layout = draws.take(), scene.layout[image]
    main = 0.55 + 0.5 * share
    part = 0.14 * torch.exp(share * math.log(6))
    few = 0.2 * torch.exp(share * math.log(5))
    many = 1 / (1 / 0.12 + share * (1 / 1.2 - 1 / 0.12))
    radius = torch.where(layout == _MANY, many, torch.where(layout == _FEW, few, part))
    return torch.where((layout == _OBJECT) & (layer == 0), main, radius)


def _angles(draws: Cursor, scene: Scene, image: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """Return any direction, or one near a multiple of a right angle; a mirrored image's first object is on its axis."""
    turn, jitter = draws.between(0, 4), draws.between(-0.15, 0.15) * draws.chance(0.5)
    level = (turn.floor() + jitter) * math.pi / 2
    angle = torch.where(scene.is_level[image], level, turn * math.pi / 2)
    on_axis = scene.is_mirrored[image] & (layer == 0)
    return torch.where(on_axis, (2 * (turn / 2).floor() + 1) * math.pi / 2, angle)


def _share_material(colours: torch.Tensor, scene: Scene, image: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    first = torch.zeros(len(scene.layout), *colours.shape[1:])
    is_first = layer == 0
    first[image[is_first]] = colours[is_first]
    return torch.where(scene.is_one_material[image][:, None, None], first[image], colours)
