"""Gradient descent on images until the teacher's output is near a soft target.

After Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021:

    min_x  D(y, softmax(T(x) / tau)) + lambda_a * L_a,    L_a = -mean |f(x)|

n images, c channels, h height, w width, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch.nn.functional import log_softmax

from dfkd_core.devices import autocast_on_gpu
from dfkd_core.errors import SynthesisError
from dfkd_core.priors import ImagePrior, PriorName, build_prior
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.sections import NonNegative, NonNegativeInt, Positive, PositiveInt, config_section
from dfkd_core.teacher import Teacher

__all__ = ["RefinementConfig", "refine", "target_losses"]

_REPORT_EVERY = 10


@config_section
class RefinementConfig:
    """How images are moved towards their soft targets."""

    prior: PriorName = "procedural"
    """Where images start from and what is optimised: `pixels`, `fourier`, `procedural` (shapes, then pixels)."""
    iterations: NonNegativeInt = 30
    """Gradient steps per image; each costs one forward and backward pass of the teacher. 0 keeps the starts."""
    learning_rate: Positive = 0.01
    """Adam's step: in grey levels of [0, 1] for pixels and procedural, in whitened coefficients for fourier."""
    temperature: Positive = 20.0
    """Temperature of the soft targets and of the teacher's output compared with them."""
    loss: Literal["kl", "cross_entropy"] = "kl"
    """Distance to the soft target. Both have the same gradient; the value of kl is 0 at the target."""
    activation_weight: NonNegative = 0.0
    """lambda_a, the weight of -mean|features| of the modelled layer; 0.05 to 0.1 in the paper, 0 saves its cost."""
    num_candidates: PositiveInt = 4
    """Starts drawn per image; the one nearest to the soft target is kept. Each costs one forward pass."""


def target_losses(
    logits: torch.Tensor, soft_targets: torch.Tensor, *, temperature: float, loss: Literal["kl", "cross_entropy"]
) -> torch.Tensor:
    """Return the distance of each image's output to its soft target, [n].

    cross_entropy: -sum_k y_k log p_k; kl: sum_k y_k (log y_k - log p_k); p = softmax(logits / temperature).

    Args:
        logits: [n, k].
        soft_targets: [n, k], rows sum to 1.
        temperature: Divides the logits; the soft targets are taken as they are.
        loss: Which of the two.
    """
    cross_entropy = -(soft_targets * log_softmax(logits.float() / temperature, dim=1)).sum(1)
    if loss == "cross_entropy":
        return cross_entropy
    return cross_entropy + torch.xlogy(soft_targets, soft_targets).sum(1)


def refine(
    teacher: Teacher,
    soft_targets: torch.Tensor,
    *,
    image_indices: Sequence[int],
    seed: int,
    config: RefinementConfig,
    on_progress: OnProgress = ignore,
) -> torch.Tensor:
    """Make one image per soft target.

    The loss is summed over images and Adam works element by element, so an image is not influenced by the others.

    Args:
        teacher: The frozen teacher; its weights get no gradient.
        soft_targets: [n, k], rows sum to 1.
        image_indices: The images' positions in the whole transfer set; they address the random draws.
        seed: The run's seed.
        config: Prior, loss and number of steps.
        on_progress: Called every few iterations with the mean loss.

    Returns:
        Images float32 [n, c, h, w] in [0, 1] on the CPU.

    Raises:
        SynthesisError: A loss is not finite; names iteration, term and images.
    """
    prior = build_prior(config.prior, teacher.card.image_shape)
    targets = soft_targets.to(teacher.device)
    parameters = _best_starts(teacher, prior, targets, image_indices, seed, config)
    if config.iterations:
        _optimise(teacher, prior, parameters, targets, image_indices, config, on_progress)
    with torch.no_grad():
        return prior.decode(parameters).float().contiguous().cpu()


def _best_starts(
    teacher: Teacher,
    prior: ImagePrior,
    targets: torch.Tensor,
    image_indices: Sequence[int],
    seed: int,
    config: RefinementConfig,
) -> torch.Tensor:
    """Draw `num_candidates` starts per image and keep the one with the lowest distance to its target."""
    best = prior.start(image_indices, seed=seed).to(teacher.device)
    if config.num_candidates == 1:
        return best
    with torch.no_grad():
        best_losses = _start_losses(teacher, prior, best, targets, config)
        for candidate in range(1, config.num_candidates):
            other = prior.start(image_indices, seed=seed, stream=f"prior/{candidate}").to(teacher.device)
            losses = _start_losses(teacher, prior, other, targets, config)
            nearer = losses < best_losses
            best[nearer], best_losses[nearer] = other[nearer], losses[nearer]
    return best


def _start_losses(
    teacher: Teacher, prior: ImagePrior, starts: torch.Tensor, targets: torch.Tensor, config: RefinementConfig
) -> torch.Tensor:
    images = prior.decode(starts).contiguous(memory_format=torch.channels_last)
    with autocast_on_gpu(teacher.device):
        logits = teacher(images)
    return target_losses(logits, targets, temperature=config.temperature, loss=config.loss)


def _optimise(
    teacher: Teacher,
    prior: ImagePrior,
    parameters: torch.Tensor,
    targets: torch.Tensor,
    image_indices: Sequence[int],
    config: RefinementConfig,
    on_progress: OnProgress,
) -> None:
    """Take `config.iterations` steps of Adam on `parameters` in place."""
    objective = _objective(teacher, targets, config)
    parameters.requires_grad_(True)
    adam = torch.optim.Adam([parameters], lr=config.learning_rate, fused=True)
    for iteration in range(1, config.iterations + 1):
        images = prior.decode(parameters).contiguous(memory_format=torch.channels_last)
        terms = objective(images)
        total = torch.stack([losses.sum() for losses in terms.values()]).sum()
        mean_loss = total.item() / len(targets)
        if not torch.isfinite(total):
            raise SynthesisError(_non_finite_message(terms, image_indices, iteration, config))
        (parameters.grad,) = torch.autograd.grad(total, parameters)
        adam.step()
        with torch.no_grad():
            prior.project(parameters)
        if iteration % _REPORT_EVERY == 0 or iteration == config.iterations:
            on_progress(_report(len(targets), iteration, config, mean_loss))
    parameters.requires_grad_(False)


def _objective(
    teacher: Teacher, targets: torch.Tensor, config: RefinementConfig
) -> Callable[[torch.Tensor], Mapping[str, torch.Tensor]]:
    """Return the function from images to the loss terms by name, each [n]."""

    def terms(images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        with autocast_on_gpu(teacher.device):
            if not config.activation_weight:
                return {config.loss: distance(teacher(images))}
            logits, features = teacher.forward_with_features(images)
        activation = -config.activation_weight * features.float().abs().mean(1)
        return {config.loss: distance(logits), "activation": activation}

    def distance(logits: torch.Tensor) -> torch.Tensor:
        return target_losses(logits, targets, temperature=config.temperature, loss=config.loss)

    return terms


def _report(num_images: int, iteration: int, config: RefinementConfig, loss: float) -> Progress:
    done = num_images * iteration // config.iterations
    return Progress(stage="synthesize", done=done, total=num_images, unit="images", metrics={"loss": loss})


def _non_finite_message(
    terms: Mapping[str, torch.Tensor], image_indices: Sequence[int], iteration: int, config: RefinementConfig
) -> str:
    faults = []
    for name, losses in terms.items():
        bad = [image_indices[i] for i in (~torch.isfinite(losses)).nonzero().flatten().tolist()]
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            faults.append(f"{name} of {len(bad)} images ({shown})")
    return (
        f"The loss is not finite at iteration {iteration} of {config.iterations}: {'; '.join(faults)}. "
        f"Lower refinement.learning_rate ({config.learning_rate}) or check the teacher's weights."
    )
