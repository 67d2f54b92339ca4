"""The blur of a lens, shared by the priors."""

from __future__ import annotations

import torch

__all__ = ["blur_maps"]


def blur_maps(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Average each pixel with its neighbours, first along columns, then along rows; the border repeats.

    Args:
        images: [n, c, h, w].
        weight: Weight of each of the two neighbours, [n] in [0, 1/3]; 0 leaves an image as it is.

    Returns:
        [n, c, h, w]; `images` itself is changed where the weight is above 0 and must not be used afterwards.
    """
    blurred = weight.nonzero()[:, 0]
    if len(blurred):
        part, weight = images[blurred], weight[blurred, None, None, None]
        images[blurred] = _blur(_blur(part, weight, dim=2), weight, dim=3)
    return images


def _blur(images: torch.Tensor, weight: torch.Tensor, *, dim: int) -> torch.Tensor:
    size = images.shape[dim]
    before = torch.cat([images.narrow(dim, 0, 1), images.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([images.narrow(dim, 1, size - 1), images.narrow(dim, size - 1, 1)], dim)
    return images * (1 - 2 * weight) + (before + after) * weight
