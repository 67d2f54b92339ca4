"""Views of the images: augmented and mixed once, labelled by the teacher once, and used in several epochs.

n images, m images of a batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dfkd_core.common.pixels import dequantise, move_batch, quantise
from dfkd_core.common.scratch import tensor_in_file
from dfkd_core.errors import DistillationError
from dfkd_core.models.passes import gibibytes
from dfkd_core.training.loop import Schedule, epoch_batches

__all__ = ["StoredViews"]

# Share of the available memory that views may take; larger ones are in files.
_SHARE_OF_MEMORY = 0.25

Make = Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]
"""Returns images float [m, c, h, w] in [0, 1] at positions int64 [m], and the teacher's outputs on the same images as
they are stored, [m, ...] each."""


class StoredViews:
    """The first epochs make a view each and store it; the later ones take them in turn.

    A view is what its epoch draws, so a resumed run can make it again with the same bits.
    """

    def __init__(
        self, num_views: int, make: Make, schedule: Schedule, *, seed: int, memory: int, folder: Path | None
    ) -> None:
        """Prepare empty views.

        Args:
            num_views: Number of views, 1 or more.
            make: Makes the rows of a batch.
            schedule: The training that uses them.
            seed: The seed of the training's shuffles and draws.
            memory: Available bytes, of which the views take a quarter at most.
            folder: Folder of the temporary files of larger views.
        """
        self._num_views, self._make, self._schedule, self._seed = num_views, make, schedule, seed
        self._memory, self._folder = memory, folder
        self._rows: dict[int, list[Tensor]] = {}
        self._num_stored = dict.fromkeys(range(num_views), 0)
        self._view, self._is_new = 0, True

    def begin(self, epoch: int) -> None:
        """Turn to the view of an epoch, counted from 1; make it again if a resumed run lacks it."""
        self._view, self._is_new = (epoch - 1) % self._num_views, epoch <= self._num_views
        if not self._is_new and self._num_stored[self._view] < self._schedule.num_images:
            generator, batches = epoch_batches(self._schedule, self._view + 1, seed=self._seed)
            for positions in batches:
                self._store(positions, self._make(positions, generator))

    def load(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the images of a batch as they are stored, and the teacher's outputs on them.

        Raises:
            DistillationError: There is no space for the views.
        """
        if not self._is_new:
            pixels, *outputs = (rows[move_batch(positions, rows.device)] for rows in self._rows[self._view])
            return dequantise(pixels, memory_format=torch.channels_last), *outputs
        made = self._make(positions, generator)
        if self._view + 1 + self._num_views <= self._schedule.epochs:
            self._store(positions, made)
        return made

    def _store(self, positions: Tensor, made: tuple[Tensor, ...]) -> None:
        images, *outputs = made
        kept = [quantise(images), *outputs]
        if self._view not in self._rows:
            self._rows[self._view] = self._empty(kept)
        for rows, new in zip(self._rows[self._view], kept, strict=True):
            rows[move_batch(positions, rows.device)] = new.to(rows.device)
        self._num_stored[self._view] += len(positions)

    def _empty(self, like: list[Tensor]) -> list[Tensor]:
        """Return tensors [n, ...] for the rows of a view, in memory or in files."""
        shapes = [torch.Size((self._schedule.num_images, *rows.shape[1:])) for rows in like]
        size = sum(shape.numel() * rows.dtype.itemsize for shape, rows in zip(shapes, like, strict=True))
        num_stored = min(self._num_views, self._schedule.epochs - self._num_views)
        if num_stored * size <= _SHARE_OF_MEMORY * self._memory:
            return [rows.new_empty(shape) for shape, rows in zip(shapes, like, strict=True)]
        try:
            if self._folder:
                self._folder.mkdir(parents=True, exist_ok=True)
            return [tensor_in_file(shape, rows.dtype, self._folder) for shape, rows in zip(shapes, like, strict=True)]
        except OSError as error:
            raise DistillationError(
                f"There is no space for {num_stored} stored views of {gibibytes(size)} each in "
                f"{self._folder or 'the folder of temporary files'}: {error}. Set a smaller distillation.views; 0 "
                "stores none, and the teacher then runs in every epoch"
            ) from error
