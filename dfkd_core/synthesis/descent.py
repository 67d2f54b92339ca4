"""Gradient descent on images under any objective of a teacher.

n images, m of them still active, c channels, h height, w width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from dfkd_core.errors import SynthesisError
from dfkd_core.micro_batches import joined
from dfkd_core.models import ModelCard
from dfkd_core.priors import ImagePrior, PriorName, are_pixel_statistics, build_prior, build_toned_prior
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, Positive, config_section
from dfkd_core.seeding import derive_generator

__all__ = ["DescentConfig", "Objective", "blur_matrix", "descend"]

Objective = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Maps images [m, c, h, w] in [0, 1], channels last, and their positions in the batch, int64 [m], to the named terms of
their losses, each [m]."""

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
    rows = torch.arange(len(starts), device=starts.device)
    with torch.no_grad():
        homes = prior.decode(starts).clone() if descent.start_weight else None
    parameters = starts.requires_grad_(True)
    adam = _adam(parameters, descent)
    shifts = derive_generator(seed, "refinement shift")
    for iteration in range(1, descent.iterations + 1):
        images = prior.decode(parameters)
        seen = _shifted(images, descent.shift_px, shifts).contiguous(memory_format=torch.channels_last)
        terms = dict(objective(seen, rows))
        losses = torch.stack(tuple(terms.values())).sum(0)
        if homes is not None:
            terms["start"] = descent.start_weight * (images - homes[rows]).square().flatten(1).mean(1)
        total = torch.stack([term.sum() for term in terms.values()]).sum()
        mean_loss = total.item() / len(rows)
        if not torch.isfinite(total):
            indices = [image_indices[row] for row in rows.tolist()]
            raise SynthesisError(_non_finite_message(terms, indices, iteration, descent))
        (gradient,) = torch.autograd.grad(total, parameters)
        _step(parameters, gradient, adam, prior, descent.smoothing_px)
        if iteration % _REPORT_EVERY == 0 or iteration == descent.iterations:
            on_progress(_report(len(starts), iteration, descent, mean_loss))
        if descent.stop_loss and iteration % _LOOK_EVERY == 0:
            is_active = losses.detach() >= descent.stop_loss
            if not is_active.all():
                finished[rows] = parameters.detach()
                rows = rows[is_active]
                if not len(rows):
                    on_progress(_report(len(starts), descent.iterations, descent, mean_loss))
                    return finished
                parameters, adam = _keep(parameters, adam, is_active, descent)
    finished[rows] = parameters.detach()
    return finished


def _adam(parameters: Tensor, descent: DescentConfig) -> torch.optim.Adam:
    return torch.optim.Adam([parameters], lr=descent.learning_rate, fused=True)


@torch.no_grad()
def _step(parameters: Tensor, gradient: Tensor, adam: torch.optim.Adam, prior: ImagePrior, smoothing_px: float) -> None:
    """Take one step of Adam in place; with smoothing, Adam works on what is blurred to become the image's change."""
    # The fused kernel walks parameter and gradient side by side, so both need the same memory layout.
    parameters.grad = torch.empty_like(parameters)
    if not smoothing_px:
        parameters.grad.copy_(gradient)
        adam.step()
    else:
        rows, columns = (blur_matrix(size, smoothing_px).to(gradient.device) for size in gradient.shape[-2:])
        parameters.grad.copy_(rows.T @ gradient @ columns)
        before = parameters.clone()
        adam.step()
        parameters.copy_(before + rows @ (parameters - before) @ columns.T)
    prior.project(parameters)


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


def _shifted(images: Tensor, shift_px: int, generator: torch.Generator) -> Tensor:
    """Move the whole batch by one draw of whole pixels; the border repeats."""
    if not shift_px:
        return images
    top, left = torch.randint(2 * shift_px + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    padded = functional.pad(images, (shift_px,) * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width]


def _keep(
    parameters: Tensor, adam: torch.optim.Adam, is_active: Tensor, descent: DescentConfig
) -> tuple[Tensor, torch.optim.Adam]:
    """Return the active rows of the parameters, and an Adam that goes on with their moments."""
    kept = parameters.detach()[is_active].requires_grad_(True)
    state = adam.state[parameters]
    smaller = _adam(kept, descent)
    smaller.state[kept] = {"step": state["step"], **{name: state[name][is_active] for name in _ADAM_MOMENTS}}
    return kept, smaller


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
