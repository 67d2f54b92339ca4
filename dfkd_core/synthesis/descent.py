"""Gradient descent on images under any objective of a teacher.

n images, m of them still active, c channels, h height, w width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import SynthesisError
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.passes import joined
from dfkd_core.priors.base import ImagePrior
from dfkd_core.priors.table import PriorName, build_prior, build_toned_prior
from dfkd_core.priors.tone import are_pixel_statistics
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, Positive, config_section
from dfkd_core.synthesis.cuda_graphs import recorded_on_gpu

__all__ = ["DescentConfig", "Objective", "blur_matrix", "descend"]

Objective = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Maps images [m, c, h, w] in [0, 1], channels last, and their positions in the batch, int64 [m], to the named terms of
their losses, each [m]. On a GPU it is recorded, so that what differs from step to step must be in tensors."""

_REPORT_EVERY = 10
_LOOK_EVERY = 5
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


@config_section
class DescentConfig:
    """How images are moved by gradient steps."""

    prior: PriorName = "procedural"
    """Where images start from and what is optimised: `pixels`, `fourier`, or, then moving the pixels, `procedural`
    (shapes), `photos` (crops of two public photographs), `mixed` (both and shapes cut from photographs) or `mosaic`
    (kept for the proxy)."""
    toned_share: Fraction = 0.0
    """Share of the starts whose brightness and contrast are changed, so that their pixels have the mean and the
    standard deviation that the teacher's normalisation holds; none where it holds a convention, such as 0.5."""
    iterations: NonNegativeInt = 30
    """Gradient steps per image; each costs one forward and backward pass of the teacher. 0 keeps the starts."""
    learning_rate: Positive = 0.01
    """Adam's step: in grey levels of [0, 1] for pixels, in whitened coefficients for fourier."""
    smoothing_px: NonNegative = 0.0
    """Standard deviation in pixels of the blur of every step, so that shapes change and not single pixels; 0 is off."""
    shift_px: NonNegativeInt = 0
    """Largest shift in pixels of the batch before each step, so that an image holds its target where it is moved."""
    start_weight: NonNegative = 0.0
    """Weight of the mean squared distance to the start, in grey levels of [0, 1]; keeps images near the prior."""
    stop_loss: NonNegative = 0.0
    """Images whose loss is below it are done, and steps go to the others; 0 gives every image all iterations."""

    def faults(self) -> Iterator[str]:
        """Yield what no single field shows."""
        if self.smoothing_px and self.prior == "fourier":
            yield "smoothing_px must be 0 with prior 'fourier', whose coefficients are no pixels"
        if self.toned_share and self.prior == "fourier":
            yield "toned_share must be 0 with prior 'fourier', whose coefficients are no pixels"

    def toned_share_for(self, teacher: ModelCard) -> float:
        """Return the share of toned starts: none if the teacher's normalisation says nothing of its images."""
        return self.toned_share if are_pixel_statistics(teacher.mean, teacher.std) else 0.0

    def build_prior(self, teacher: ModelCard) -> ImagePrior:
        """Return the prior for this teacher's images."""
        share = self.toned_share_for(teacher)
        if not share:
            return build_prior(self.prior, teacher.image_shape)
        return build_toned_prior(self.prior, teacher.image_shape, share=share, mean=teacher.mean, std=teacher.std)


def descend(
    prior: ImagePrior,
    starts: Tensor,
    objective: Objective,
    *,
    image_indices: Sequence[int],
    seed: int,
    descent: DescentConfig,
    device: torch.device,
    images_per_pass: int | None = None,
    on_progress: OnProgress = ignore,
) -> Tensor:
    """Move images down an objective with Adam (Kingma and Ba, 2015).

    The loss is summed over images and Adam works element by element, so that an image is not influenced by the others
    unless the objective itself couples them.

    Args:
        prior: Turns parameters into images.
        starts: Its parameters [n, ...]; not changed.
        objective: Terms of each image's loss.
        image_indices: The images' positions in the whole transfer set, for messages.
        seed: Addresses the shifts.
        descent: Number and kind of the steps.
        device: Where to compute.
        images_per_pass: Most images moved at once, neighbours together; None moves all at once, as an objective that
            couples them needs. Changes images by rounding alone.
        on_progress: Called every few iterations with the mean loss of the active images.

    Returns:
        Images float32 [n, c, h, w] in [0, 1] on the CPU.

    Raises:
        SynthesisError: A loss is not finite; names iteration, term and images.
    """
    parts = torch.split(starts, max(1, images_per_pass or len(starts)))
    images, first = [], 0
    for part in parts:
        parameters = part.to(device).clone()
        if descent.iterations:
            indices = image_indices[first : first + len(part)]
            own, report = _of_part(first, len(starts), objective, on_progress)
            parameters = _optimise(prior, parameters, own, indices, seed, descent, report)
        with torch.no_grad():
            images.append(prior.decode(parameters).float().contiguous().cpu())
        first += len(part)
    return joined(images)


def _of_part(
    first: int, num_images: int, objective: Objective, on_progress: OnProgress
) -> tuple[Objective, OnProgress]:
    """Return the objective and the report of the whole batch for a part of it that begins at row `first`."""

    def losses(images: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
        return objective(images, rows + first)

    def report(progress: Progress) -> None:
        on_progress(dataclasses.replace(progress, done=first + progress.done, total=num_images))

    return losses, report


def _optimise(
    prior: ImagePrior,
    starts: Tensor,
    objective: Objective,
    image_indices: Sequence[int],
    seed: int,
    descent: DescentConfig,
    on_progress: OnProgress,
) -> Tensor:
    finished = starts.clone()
    moving = _Moving(prior, starts, objective, seed, descent)
    # Where images are taken out, a recording would be of a batch that is no more.
    step = moving.step if descent.stop_loss else recorded_on_gpu(moving.step, starts.device)
    for iteration in range(1, descent.iterations + 1):
        moving.choose_shift(iteration)
        step()
        is_last = iteration == descent.iterations
        # Each look makes a GPU wait.
        if starts.is_cuda and not is_last and iteration % _LOOK_EVERY:
            continue
        total = moving.total.item()
        mean_loss = total / len(moving.rows)
        if not math.isfinite(total):
            indices = [image_indices[row] for row in moving.rows.tolist()]
            raise SynthesisError(_non_finite_message(moving.terms, indices, iteration, descent))
        if iteration % _REPORT_EVERY == 0 or is_last:
            on_progress(_report(len(starts), iteration, descent, mean_loss))
        if descent.stop_loss and iteration % _LOOK_EVERY == 0:
            is_active = moving.losses >= descent.stop_loss
            if not is_active.all():
                finished[moving.rows] = moving.parameters.detach()
                if not is_active.any():
                    on_progress(_report(len(starts), descent.iterations, descent, mean_loss))
                    return finished
                moving.keep(is_active)
    finished[moving.rows] = moving.parameters.detach()
    return finished


class _Moving:
    """Images on their way; a step reads and writes tensors alone, so that a GPU can record it."""

    def __init__(
        self, prior: ImagePrior, starts: Tensor, objective: Objective, seed: int, descent: DescentConfig
    ) -> None:
        self._prior, self._objective, self._descent = prior, objective, descent
        self.rows = torch.arange(len(starts), device=starts.device)
        """Positions in the batch of the images that are still moved."""
        with torch.no_grad():
            images = prior.decode(starts)
        self._homes = images.clone() if descent.start_weight else None
        self._blur = (
            [blur_matrix(size, descent.smoothing_px).to(images) for size in images.shape[-2:]]
            if descent.smoothing_px
            else None
        )
        self._shifts = _Shifts(images, seed, descent) if descent.shift_px else None
        self.parameters = starts.requires_grad_(True)
        self._adam = self._build_adam(self.parameters)
        self.terms: dict[str, Tensor] = {}
        """Terms of the loss of the last step, each [m]."""
        self.losses = self.total = torch.empty(0)

    def choose_shift(self, iteration: int) -> None:
        """Draw how the next step moves the batch; iterations count from 1."""
        if self._shifts is not None:
            self._shifts.choose(iteration)

    def step(self) -> None:
        """Take one step of Adam; note the losses before it."""
        images = self._prior.decode(self.parameters)
        seen = images if self._shifts is None else self._shifts.of(images)
        terms = dict(self._objective(seen.contiguous(memory_format=torch.channels_last), self.rows))
        losses = torch.stack(tuple(terms.values())).sum(0)
        if self._homes is not None:
            distances = (images - self._homes[self.rows]).square().flatten(1).mean(1)
            terms["start"] = self._descent.start_weight * distances
        total = torch.stack([term.sum() for term in terms.values()]).sum()
        (gradient,) = torch.autograd.grad(total, self.parameters)
        self._move(gradient)
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.losses, self.total = losses.detach(), total.detach()

    def keep(self, is_active: Tensor) -> None:
        """Go on with these of the images, bool [m], and with Adam's moments of them."""
        self.rows = self.rows[is_active]
        kept = self.parameters.detach()[is_active].requires_grad_(True)
        state = self._adam.state[self.parameters]
        self._adam = self._build_adam(kept)
        moments = {name: state[name][is_active] for name in _ADAM_MOMENTS}
        self._adam.state[kept] = {"step": state["step"], **moments}
        self.parameters = kept

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        """Take Adam's step; with smoothing, Adam works on what is blurred to become the image's change."""
        parameters = self.parameters
        # The fused kernel walks parameter and gradient side by side, so both need the same memory layout.
        parameters.grad = torch.empty_like(parameters)
        if self._blur is None:
            parameters.grad.copy_(gradient)
            self._adam.step()
        else:
            rows, columns = self._blur
            parameters.grad.copy_(rows.T @ gradient @ columns)
            before = parameters.clone()
            self._adam.step()
            parameters.copy_(before + rows @ (parameters - before) @ columns.T)
        self._prior.project(parameters)

    def _build_adam(self, parameters: Tensor) -> torch.optim.Adam:
        return torch.optim.Adam([parameters], lr=self._descent.learning_rate, fused=True, capturable=parameters.is_cuda)


class _Shifts:
    """Moves a batch by whole pixels, each step by one draw; the border repeats.

    As products with matrices of zeros and ones, whose gradient a GPU adds up in the same order each time.
    """

    def __init__(self, images: Tensor, seed: int, descent: DescentConfig) -> None:
        reach = descent.shift_px
        generator = derive_generator(seed, "refinement shift")
        self._draws = torch.randint(2 * reach + 1, (descent.iterations, 2), generator=generator).to(images.device)
        self._chosen = torch.zeros_like(self._draws[0])
        self._down, self._across = (_shift_matrices(side, reach).to(images) for side in images.shape[-2:])

    def choose(self, iteration: int) -> None:
        """Take the draw of this iteration, from 1."""
        self._chosen.copy_(self._draws[iteration - 1])

    def of(self, images: Tensor) -> Tensor:
        """Return the images [n, c, h, w] as the draw moves them."""
        down, across = self._chosen[:1], self._chosen[1:]
        moved: Tensor = self._down.index_select(0, down)[0] @ images @ self._across.index_select(0, across)[0].T
        return moved


def _shift_matrices(size: int, reach: int) -> Tensor:
    """Return matrices [2 reach + 1, size, size]; number s makes pixel i of a column its pixel i + s - reach."""
    offsets = torch.arange(-reach, reach + 1)[:, None]
    sources = (torch.arange(size) + offsets).clamp(0, size - 1)
    return functional.one_hot(sources, size).float()


@cache
def blur_matrix(size: int, std_px: float) -> Tensor:
    """Return the matrix [size, size] that blurs a column of pixels with a Gaussian; the border repeats.

    Args:
        size: Number of pixels.
        std_px: Standard deviation in pixels, above 0; the kernel ends at three of them.
    """
    radius = max(1, round(3 * std_px))
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / std_px) ** 2)
    matrix = torch.zeros(size, size)
    for row in range(size):
        matrix[row].index_add_(0, (row + offsets).clamp(0, size - 1), weights / weights.sum())
    return matrix


def _report(num_images: int, iteration: int, descent: DescentConfig, loss: float) -> Progress:
    done = num_images * iteration // descent.iterations
    return Progress(stage="synthesize", done=done, total=num_images, unit="images", metrics={"loss": loss})


def _non_finite_message(
    terms: Mapping[str, Tensor], image_indices: Sequence[int], iteration: int, descent: DescentConfig
) -> str:
    faults = []
    for name, losses in terms.items():
        bad = [image_indices[i] for i in (~torch.isfinite(losses)).nonzero().flatten().tolist()]
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            faults.append(f"{name} of {len(bad)} images ({shown})")
    return (
        f"The loss is not finite at iteration {iteration} of {descent.iterations}: {'; '.join(faults)}. "
        f"Lower the method's learning_rate ({descent.learning_rate}) or check the teacher's weights."
    )
