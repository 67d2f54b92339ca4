"""Outlines as signed distances: negative inside, in units of the shape's radius.

Every outline takes local coordinates u, v [m, 2, h, w] (the shape lies within about [-1, 1]) and its own uniform
numbers [m, NUM_OUTLINE_DRAWS]; m shapes. Distances only need to be exact near the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from dfkd_core.priors.draws import Cursor

__all__ = ["NUM_OUTLINE_DRAWS", "OUTLINES", "OUTLINE_WEIGHTS"]

NUM_OUTLINE_DRAWS = 16
_NUM_HARMONICS = 5
_NUM_SIDES = 6

Outline = Callable[[torch.Tensor, Cursor], torch.Tensor]


def _maps(numbers: torch.Tensor) -> torch.Tensor:
    """Reshape one number per shape so that it broadcasts over pixels."""
    return numbers[:, None, None]


def _ellipse(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return ellipses; the short axis is 0.3 to 1 times the long one."""
    u, v = local.unbind(1)
    aspect = draws.between(0.3, 1)
    return ((u.square() + (v / _maps(aspect)).square()).sqrt() - 1) * _maps(aspect.sqrt())


def _box(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return boxes and trapezoids with sharp or rounded corners."""
    u, v = local.unbind(1)
    half_width, taper, rounding = draws.between(0.15, 1), draws.between(-0.6, 0.6), draws.between(0, 0.5)
    taper = torch.where(draws.chance(0.5), taper, 0.0)
    rounding = torch.where(draws.chance(0.5), rounding, 0.0) * half_width
    across = v.abs() / (1 + _maps(taper) * u).clamp_min(0.2) - _maps(half_width - rounding)
    along = u.abs() - _maps(0.9 - rounding)
    outside = (across.clamp_min(0).square() + along.clamp_min(0).square()).sqrt()
    return outside + torch.maximum(across, along).clamp_max(0) - _maps(rounding)


def _polygon(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return convex polygons with 3 to 6 sides: the intersection of half-planes with normals all around."""
    num_sides = 3 + draws.choice(2, 2, 1, 1)[:, None]
    jitter, offsets = draws.take(_NUM_SIDES), 0.35 + 0.5 * draws.take(_NUM_SIDES)
    side = torch.arange(_NUM_SIDES)
    angle = 2 * math.pi * (side + 0.6 * (jitter - 0.5)) / num_sides
    # A surplus side is infinitely far inside.
    offsets = offsets.masked_fill(side >= num_sides, math.inf)[:, :, None]
    planes = torch.baddbmm(-offsets, torch.stack([angle.cos(), angle.sin()], 2), local.flatten(2))
    return planes.amax(1).view_as(local[:, 0])


def _contour(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return closed Fourier contours r(theta) = 1 + sum_k a_k cos(k theta) + b_k sin(k theta); half are symmetric."""
    u, v = local.unbind(1)
    cosines, sines = 2 * draws.take(_NUM_HARMONICS) - 1, 2 * draws.take(_NUM_HARMONICS) - 1
    sines = sines * draws.chance(0.5)[:, None]
    strength, falloff = draws.between(0.2, 0.75), draws.between(0.3, 1.5)
    radius = (u.square() + v.square()).sqrt().clamp_min(1e-4)
    cos_k, sin_k = u / radius, v / radius
    cos_last, sin_last, twice_cos = torch.ones_like(u), torch.zeros_like(u), 2 * cos_k
    outline = torch.full_like(u, 0.7)
    for k in range(_NUM_HARMONICS):
        amplitude = strength / (k + 1) ** falloff
        outline.addcmul_(cos_k, _maps(amplitude * cosines[:, k])).addcmul_(sin_k, _maps(amplitude * sines[:, k]))
        # cos (k+1)t = 2 cos t cos kt - cos (k-1)t: the next harmonic without a trigonometric function per pixel.
        cos_k, cos_last = cos_last.neg_().addcmul_(twice_cos, cos_k), cos_k
        sin_k, sin_last = sin_last.neg_().addcmul_(twice_cos, sin_k), sin_k
    return 0.8 * (radius - outline.clamp_min(0.12))


def _profile(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return symmetric silhouettes |v| < w(u), the half-width w a random smooth function of the axis position."""
    u, v = local.unbind(1)
    base, strength = draws.between(0.15, 0.7), draws.between(0.1, 0.6)
    weights, phases = draws.take(3), 2 * math.pi * draws.take(3)
    width = _maps(base)
    for k in range(3):
        wave = (_maps(phases[:, k]) + u * ((k + 1) * math.pi / 2)).cos()
        width = width + _maps(strength * weights[:, k] / (k + 1) ** 0.5) * wave
    return torch.maximum(0.7 * (v.abs() - width.clamp_min(0.04)), u.abs() - 0.95)


def _stroke(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return waved or straight strokes along the axis, thick in the middle, thick at one end or even."""
    u, v = local.unbind(1)
    amplitude = draws.between(0, 0.6) * draws.chance(0.7)
    frequency, phase = draws.between(0.5, 5), draws.between(0, 2 * math.pi)
    thickness, taper = draws.between(0.05, 0.22), draws.between(-0.8, 0.8)
    angle = u * _maps(frequency) + _maps(phase)
    # Dividing by the slope keeps the thickness of steep parts.
    steepness = (1 + (amplitude * frequency).square() / 2).sqrt()
    off = (v - _maps(amplitude) * angle.sin()).abs() / _maps(steepness)
    return torch.maximum(off - _maps(thickness) * (1 + _maps(taper) * u), u.abs() - 1)


def _arc(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return arcs: bands of an ellipse cut off by a line; a ring if the line misses it."""
    u, v = local.unbind(1)
    aspect, thickness, cut = draws.between(0.5, 1), draws.between(0.05, 0.2), draws.between(-0.7, 1.6)
    band = ((u.square() + (v / _maps(aspect)).square()).sqrt() - 0.8).abs() - _maps(thickness)
    return torch.maximum(band, u - _maps(cut))


def _half_plane(local: torch.Tensor, draws: Cursor) -> torch.Tensor:
    """Return everything on one side of a line, straight or bent."""
    u, v = local.unbind(1)
    return v + _maps(draws.between(-0.5, 0.5)) * u.square() - _maps(draws.between(-0.3, 0.3))


OUTLINES: tuple[Outline, ...] = (_ellipse, _box, _polygon, _contour, _profile, _stroke, _arc, _half_plane)
"""All outlines; a shape's kind is an index into this tuple."""

OUTLINE_WEIGHTS = (4.0, 5.0, 3.0, 3.5, 3.5, 3.0, 1.5, 1.0)
"""How often each outline is drawn, relative to the others."""
