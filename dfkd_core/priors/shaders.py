"""Pictures that formulas make of coordinates and noise, laid over each other in blobs, without any data.

Such pictures, rendered by programs that artists wrote, taught students of colour photographs almost as much as real
ones: Frank and Davis, "What makes a good dataset for knowledge distillation?", 2024 (arXiv 2411.12817).

n images, c channels, h height, w width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.blurring import blur_maps
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fills import rough_fields
from dfkd_core.priors.mosaic import pixel_centres
from dfkd_core.priors.pixels import PixelPrior, paint_in_chunks
from dfkd_core.priors.shader_families import FAMILIES, NUM_FIELDS, Canvas, num_family_draws

__all__ = ["ShaderPrior"]

# Shares of the images that have a second and a third picture.
_LAYER_SHARES = (1.0, 0.6, 0.3)
_NUM_LAYERS = len(_LAYER_SHARES)
_NUM_BLOB_DRAWS = 9
_NUM_FINISH_DRAWS = 9


class ShaderPrior(PixelPrior):
    """Pictures of seven families: random networks, warped noise, fractals, gratings, lit solids, clouds and strokes.

    One to three pictures per image; the second and third are visible in blobs. Refinement then optimises the images'
    pixels [n, c, h, w].
    """

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> Tensor:
        """Draw and paint images, see `ImagePrior.start`."""
        channels, height, width = self._image_shape

        def paint(indices: Sequence[int]) -> Tensor:
            rows = uniform_rows(seed, stream, indices, (_num_draws(self._image_shape),))
            return _paint(rows, (height, width), channels)

        return paint_in_chunks(paint, image_indices, self._image_shape)


def _num_draws(image_shape: tuple[int, int, int]) -> int:
    """Return the uniform numbers that one image takes."""
    channels, height, width = image_shape
    layer = 4 + num_family_draws(channels) + NUM_FIELDS * height * width
    return _NUM_LAYERS * layer + 2 * (_NUM_BLOB_DRAWS + height * width) + _NUM_FINISH_DRAWS


def _paint(rows: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """Turn uniform numbers [n, _num_draws((c, h, w))] into images [n, c, h, w]."""
    draws = Cursor(rows)
    x, y = (position.expand(len(rows), *size) for position in pixel_centres(*size))
    images = torch.empty(len(rows), channels, *size)
    layers = [_Layer(draws, share, size, channels) for share in _LAYER_SHARES]
    smooth = rough_fields(draws.take(2, *size), draws.between(1.6, 3.0))
    blobs = [_blobs(draws, x, y, smooth[:, number]) for number in range(_NUM_LAYERS - 1)]
    for layer, cover in zip(layers, (torch.ones_like(x), *blobs), strict=True):
        for family, painter in enumerate(FAMILIES):
            chosen = (layer.is_there & (layer.family == family)).nonzero()[:, 0]
            if len(chosen):
                picture = painter(layer.canvas(chosen, x, y))
                beneath = picture if layer is layers[0] else images[chosen]
                images[chosen] = torch.lerp(beneath, picture, cover[chosen, None])
    return _finish(images, layers[0].white, draws)


class _Layer:
    """The draws of one picture of each image."""

    def __init__(self, draws: Cursor, share: float, size: tuple[int, int], channels: int) -> None:
        self.is_there, self.family = draws.chance(share), (draws.take() * len(FAMILIES)).long()
        self._exponents = [draws.between(0.6, 2.4) for _ in range(2)]
        self._numbers, white = draws.take(num_family_draws(channels)), draws.take(NUM_FIELDS, *size)
        self._white, self._channels = white, channels

    @property
    def white(self) -> Tensor:
        """White noise [n, h, w] in [0, 1)."""
        return self._white[:, 0]

    def canvas(self, chosen: Tensor, x: Tensor, y: Tensor) -> Canvas:
        """Return what the pictures of the chosen images are painted from."""
        pairs = zip(self._white[chosen].chunk(2, 1), self._exponents, strict=True)
        fields = torch.cat([rough_fields(white, exponent[chosen]) for white, exponent in pairs], 1)
        return Canvas(x[chosen], y[chosen], fields, Cursor(self._numbers[chosen]), self._channels)


def _blobs(draws: Cursor, x: Tensor, y: Tensor, field: Tensor) -> Tensor:
    """Return how much of each pixel a layer covers, [n, h, w]: level sets of a smooth field, or an ellipse."""
    angle, size = draws.between(0, 2 * math.pi), torch.exp(draws.between(math.log(0.8), math.log(3)))
    stretch, across, down = torch.exp(draws.between(-0.5, 0.5)), draws.between(-0.35, 0.35), draws.between(-0.35, 0.35)
    shift, is_field, hardness = draws.between(-0.9, 0.9), draws.chance(0.5), draws.between(math.log(3), math.log(60))
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = x - across[:, None, None], y - down[:, None, None]
    u, v = (x * cosine - y * sine) * stretch[:, None, None], (x * sine + y * cosine) / stretch[:, None, None]
    ellipse = 2.7 - 3 * size[:, None, None] * (u.square() + v.square()).sqrt() + 0.5 * field
    level = torch.where(is_field[:, None, None], field + shift[:, None, None], ellipse)
    return torch.sigmoid(level * torch.exp(hardness)[:, None, None])


def _finish(images: Tensor, white: Tensor, draws: Cursor) -> Tensor:
    """Blur, expose and add grain, like a lens and a sensor."""
    images = blur_maps(images, draws.between(0, 0.25) * draws.chance(0.4))
    mean = images.mean((1, 2, 3), keepdim=True)
    spread = (images - mean).square().mean((1, 2, 3)).sqrt().clamp_min(0.02)
    gain = torch.where(draws.chance(0.6), (draws.between(0.1, 0.32) / spread).clamp_max(3), 1.0)
    level = torch.where(draws.chance(0.6), draws.between(0.25, 0.7), mean[:, 0, 0, 0])
    images = (images - mean) * gain[:, None, None, None] + level[:, None, None, None]
    grain = draws.between(0, 0.1) * draws.chance(0.3)
    return (images + ((white - 0.5) * grain[:, None, None])[:, None]).clamp_(0, 1)
