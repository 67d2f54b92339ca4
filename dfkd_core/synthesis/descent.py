"""Gradient descent on images under an arbitrary objective.

n images, m of them in one pass, c channels, h height, w width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.optim.adam import adam

from dfkd_core.common.cuda_graphs import recorded_on_gpu
from dfkd_core.errors import SynthesisError
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.passes import joined
from dfkd_core.priors.base import ImagePrior
from dfkd_core.priors.table import PriorName, build_prior, build_toned_prior
from dfkd_core.priors.tone import are_pixel_statistics
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import Fraction, NonNegative, NonNegativeInt, Positive, config_section

__all__ = ["DescentConfig", "Objective", "blur_matrix", "descend"]

Objective = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Maps images [m, c, h, w] in [0, 1], channels last, and their positions in the batch, int64 [m], to the named terms of
their losses, each [m]. On a GPU it is recorded, so anything that changes between steps must be in tensors."""

_REPORT_EVERY = 10
_LOOK_EVERY = 5


@config_section
class DescentConfig:
    """How images are changed by gradient steps."""

    prior: PriorName = "procedural"
    """Where images start and what is optimised: `pixels`, `fourier` (coefficients), or starts whose pixels are
    optimised: `procedural` (shapes), `shaders` (formulas of coordinates and noise), `photos` (crops of two public
    photographs), `mixed` (shapes, crops, and shapes cut from photographs) or `mosaic` (kept for the proxy)."""
    toned_share: Fraction = 0.0
    """Share of the starts whose brightness and contrast are changed so that their pixels have the mean and the standard
    deviation of the teacher's normalisation; no effect if these are a mere convention, such as 0.5."""
    iterations: NonNegativeInt = 30
    """Gradient steps per image, each one forward and backward pass of the teacher; 0 keeps the starts."""
    learning_rate: Positive = 0.01
    """Learning rate of Adam, in grey levels of [0, 1] for pixels and in whitened coefficients for `fourier`."""
    smoothing_px: NonNegative = 0.0
    """Standard deviation, in pixels, of the blur of every step, to change shapes, not single pixels; 0 is off."""

    def is_refined(self, image_indices: Sequence[int]) -> Tensor:
        """Return whether the images at these positions of the set are changed, bool [n]; the others stay as drawn."""
        return torch.full((len(image_indices),), self.iterations > 0)

    def faults(self) -> Iterator[str]:
        """Yield the faults that the range checks of single fields miss."""
        if self.smoothing_px and self.prior == "fourier":
            yield "smoothing_px must be 0 with prior 'fourier', whose coefficients are not pixels"
        if self.toned_share and self.prior == "fourier":
            yield "toned_share must be 0 with prior 'fourier', whose coefficients are not pixels"

    def toned_share_for(self, teacher: ModelCard) -> float:
        """Return the share of toned starts: 0 if the teacher's normalisation does not describe its training images."""
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
    descent: DescentConfig,
    device: torch.device,
    images_per_pass: int | None = None,
    on_progress: OnProgress = ignore,
) -> Tensor:
    """Minimise an objective over images with Adam (Kingma and Ba, 2015).

    The loss is summed over images and Adam works element by element, so an image does not depend on the others unless
    the objective couples them.

    Args:
        prior: Turns parameters into images.
        starts: Initial parameters of the prior [n, ...]; not changed.
        objective: Terms of each image's loss.
        image_indices: The images' positions in the whole transfer set, for messages.
        descent: Number and size of the steps.
        device: Where to compute.
        images_per_pass: Most images per pass, in order; None puts all in one pass, which an objective that couples
            images requires. Changes images only by rounding.
        on_progress: Called every few iterations with the images' mean loss.

    Returns:
        Images float32 [n, c, h, w] in [0, 1] on the CPU.

    Raises:
        SynthesisError: A loss is not finite; names iteration, term and images.
    """
    size = max(1, images_per_pass or len(starts))
    images = []
    for first in range(0, len(starts), size):
        parameters = starts[first : first + size].to(device).clone()
        if descent.iterations:
            rows = torch.arange(first, first + len(parameters), device=device)
            indices = image_indices[first : first + size]
            report = _for_the_whole(on_progress, first, len(starts))
            parameters = _optimise(prior, parameters, rows, objective, indices, descent, report)
        with torch.no_grad():
            images.append(prior.decode(parameters).float().contiguous().cpu())
    return joined(images)


def _for_the_whole(on_progress: OnProgress, first: int, num_images: int) -> OnProgress:
    """Return a callback that converts the progress of a part that starts at row `first` to that of the whole batch."""

    def report(progress: Progress) -> None:
        on_progress(dataclasses.replace(progress, done=first + progress.done, total=num_images))

    return report


def _optimise(
    prior: ImagePrior,
    starts: Tensor,
    rows: Tensor,
    objective: Objective,
    image_indices: Sequence[int],
    descent: DescentConfig,
    on_progress: OnProgress,
) -> Tensor:
    moving = _Moving(prior, starts, rows, objective, descent)
    step = recorded_on_gpu(moving.step, starts.device)
    for iteration in range(1, descent.iterations + 1):
        step()
        is_last = iteration == descent.iterations
        # Each read makes a GPU wait.
        if starts.is_cuda and not is_last and iteration % _LOOK_EVERY:
            continue
        total = moving.total.item()
        if not math.isfinite(total):
            raise SynthesisError(_non_finite_message(moving.terms, image_indices, iteration, descent))
        if iteration % _REPORT_EVERY == 0 or is_last:
            on_progress(_report(len(starts), iteration, descent, total / len(starts)))
    return moving.parameters.detach()


class _Moving:
    """Images under optimisation; a step only reads and writes tensors, so that a GPU can record it."""

    def __init__(
        self, prior: ImagePrior, starts: Tensor, rows: Tensor, objective: Objective, descent: DescentConfig
    ) -> None:
        self._prior, self._rows, self._objective = prior, rows, objective
        with torch.no_grad():
            images = prior.decode(starts)
        self._blur = (
            [blur_matrix(size, descent.smoothing_px).to(images) for size in images.shape[-2:]]
            if descent.smoothing_px
            else None
        )
        self.parameters = starts.requires_grad_(True)
        self._adam = _Adam(self.parameters, descent.learning_rate)
        self.terms: dict[str, Tensor] = {}
        """Terms of the last step's loss, each [m]."""
        self.total = torch.empty(0)

    def step(self) -> None:
        """Take one step of Adam and store the losses before it."""
        images = self._prior.decode(self.parameters).contiguous(memory_format=torch.channels_last)
        terms = self._objective(images, self._rows)
        total = torch.stack([term.sum() for term in terms.values()]).sum()
        (gradient,) = torch.autograd.grad(total, self.parameters)
        self._move(gradient)
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.total = total.detach()

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        """Take one step of Adam; with smoothing, Adam works on values whose blur is the image's change."""
        parameters = self.parameters
        # The fused kernel reads parameter and gradient in parallel, so both need the same memory layout.
        aligned = torch.empty_like(parameters)
        if self._blur is None:
            self._adam.step(aligned.copy_(gradient))
        else:
            rows, columns = self._blur
            before = parameters.clone()
            self._adam.step(aligned.copy_(rows.T @ gradient @ columns))
            parameters.copy_(before + rows @ (parameters - before) @ columns.T)
        self._prior.project(parameters)


class _Adam:
    """Adam with the usual settings, as `torch.optim.Adam`, whose first step imports torch's compiler for seconds."""

    def __init__(self, parameters: Tensor, learning_rate: float) -> None:
        self._parameters, self._learning_rate = parameters, learning_rate
        self._moments = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self._steps = torch.zeros((), device=parameters.device)

    def step(self, gradient: Tensor) -> None:
        """Move the parameters in place; `gradient` has their memory layout."""
        first, second = self._moments
        adam(
            [self._parameters],
            [gradient],
            [first],
            [second],
            [],
            [self._steps],
            fused=True,
            capturable=self._parameters.is_cuda,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


@cache
def blur_matrix(size: int, std_px: float) -> Tensor:
    """Return the matrix [size, size] that blurs a column of pixels with a Gaussian; border pixels are repeated.

    Args:
        size: Number of pixels.
        std_px: Standard deviation in pixels, above 0; the kernel is cut off at three of them.
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
