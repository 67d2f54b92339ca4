"""A mixture of three families: procedural shapes, crops of photographs, and shapes cut out of such crops.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.photos import PhotoPrior
from dfkd_core.priors.pixels import PixelPrior, paint_in_chunks
from dfkd_core.priors.procedural import ProceduralPrior, num_painting_draws, paint_scenes

__all__ = ["MixedPrior"]


class MixedPrior(PixelPrior):
    """A third each of `ProceduralPrior`, `PhotoPrior` and shapes cut out of photographs, drawn image by image.

    Refinement then optimises the images' pixels [n, c, h, w]. Like `PhotoPrior` it uses pictures, but none of the
    teacher's data.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        """Make images of shape (c, h, w)."""
        super().__init__(image_shape)
        self._families = (ProceduralPrior(image_shape), PhotoPrior(image_shape), _CutOutPrior(image_shape))

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw each image from the family that its own row selects, see `ImagePrior.start`.

        Raises:
            DataError: scikit-learn's photographs cannot be read.
        """
        share = uniform_rows(seed, f"{stream}/family", image_indices, (1,))[:, 0]
        family = (share * len(self._families)).long()
        images = torch.empty(len(image_indices), *self._image_shape)
        for number, prior in enumerate(self._families):
            rows = (family == number).nonzero()[:, 0]
            images[rows] = prior.start([image_indices[row] for row in rows.tolist()], seed=seed, stream=stream)
        return images


class _CutOutPrior(PixelPrior):
    """Procedural scenes whose grounds and shapes show crops of photographs."""

    def start(self, image_indices: Sequence[int], *, seed: int, stream: str = "prior") -> torch.Tensor:
        """Draw scenes and two crops each, see `ImagePrior.start`."""
        channels, height, width = self._image_shape
        photos = PhotoPrior(self._image_shape)

        def paint(indices: Sequence[int]) -> torch.Tensor:
            rows = uniform_rows(seed, stream, indices, (num_painting_draws(self._image_shape),))
            crops = [photos.start(indices, seed=seed, stream=f"{stream}/material {k}") for k in range(2)]
            return paint_scenes(rows, (height, width), channels, materials=torch.stack(crops, 1))

        return paint_in_chunks(paint, image_indices, self._image_shape)
