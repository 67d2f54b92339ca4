"""Gradient descent on images until the teacher's output is near a soft target.

After Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021:

    min_x  D(y, softmax(T(x) / tau)) + lambda_a * L_a,    L_a = -mean |f(x)|

n images, c channels, h height, w width, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import log_softmax

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.models.passes import joined
from dfkd_core.models.teacher import Teacher
from dfkd_core.priors.base import ImagePrior
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import Fraction, NonNegative, Positive, PositiveInt, config_section
from dfkd_core.synthesis.descent import DescentConfig, Objective, descend

__all__ = ["DescentConfig", "Objective", "RefinementConfig", "descend", "refine", "target_losses"]


@config_section
class RefinementConfig(DescentConfig):
    """How images are moved towards their soft targets."""

    refined_share: Fraction = 1.0
    """Share of the images that are refined, spread evenly; the others stay as drawn, which costs a hundredth."""
    temperature: Positive = 20.0
    """Temperature of the soft targets and of the teacher's output compared with them."""
    loss: Literal["kl", "cross_entropy"] = "kl"
    """Distance to the soft target. Both have the same gradient; the value of kl is 0 at the target."""
    activation_weight: NonNegative = 0.0
    """lambda_a, the weight of -mean|features| of the modelled layer; 0.05 to 0.1 in the paper, 0 saves its cost."""
    num_candidates: PositiveInt = 1
    """Starts drawn per image; each costs one forward pass of the teacher."""
    matching: Literal["own", "assignment"] = "own"
    """Which start an image gets: the nearest to its target of its own candidates, or of all candidates of the batch, by
    the assignment with the least total distance; the images then depend on `batch_size`."""


def target_losses(
    logits: Tensor, soft_targets: Tensor, *, temperature: float, loss: Literal["kl", "cross_entropy"]
) -> Tensor:
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
    soft_targets: Tensor,
    *,
    image_indices: Sequence[int],
    seed: int,
    config: RefinementConfig,
    target_features: Tensor | None = None,
    feature_weight: float = 0.0,
    on_progress: OnProgress = ignore,
) -> Tensor:
    """Make one image per soft target.

    The loss is summed over images and Adam works element by element, so an image is not influenced by the others
    unless starts are assigned (`config.matching`).

    Args:
        teacher: The frozen teacher; its weights get no gradient.
        soft_targets: [n, k], rows sum to 1.
        image_indices: The images' positions in the whole transfer set; they address the random draws.
        seed: The run's seed.
        config: Prior, loss and number of steps.
        target_features: Features [n, d] to be matched as well, for a `feature_weight` above 0.
        feature_weight: Weight of the mean squared distance of the features over the targets' variance.
        on_progress: Called every few iterations with the mean loss.

    Returns:
        Images float32 [n, c, h, w] in [0, 1] on the CPU.

    Raises:
        SynthesisError: A loss is not finite; names iteration, term and images.
    """
    prior = config.build_prior(teacher.card)
    chosen = _is_refined(image_indices, config.refined_share)
    images = torch.empty(len(image_indices), *teacher.card.image_shape)
    if not chosen.all():
        drawn = [index for index, is_chosen in zip(image_indices, chosen.tolist()) if not is_chosen]
        images[~chosen] = prior.decode(prior.start(drawn, seed=seed)).float()
    if chosen.any():
        indices = [index for index, is_chosen in zip(image_indices, chosen.tolist()) if is_chosen]
        targets = soft_targets[chosen].to(teacher.device)
        features = None
        if target_features is not None and feature_weight:
            features = _comparable(teacher, target_features[chosen])
        choose = _assigned_starts if config.matching == "assignment" else _best_starts
        images[chosen] = descend(
            prior,
            choose(teacher, prior, targets, indices, seed, config),
            _objective(teacher, targets, config, features, feature_weight),
            image_indices=indices,
            seed=seed,
            descent=config,
            device=teacher.device,
            images_per_pass=teacher.passes.images_per_pass(len(indices), with_gradient=True),
            on_progress=on_progress,
        )
    return images


def _is_refined(image_indices: Sequence[int], share: float) -> Tensor:
    """Return whether each image is refined, bool [n]: of any run of images the share, to one image."""
    positions = torch.tensor([int(index) for index in image_indices], dtype=torch.float64)
    return ((positions + 1) * share).floor() > (positions * share).floor()


def _best_starts(
    teacher: Teacher,
    prior: ImagePrior,
    targets: Tensor,
    image_indices: Sequence[int],
    seed: int,
    config: RefinementConfig,
) -> Tensor:
    """Draw `num_candidates` starts per image and keep the one with the lowest distance to its target."""
    best = _candidate(prior, image_indices, seed, 0).to(teacher.device)
    if config.num_candidates == 1:
        return best
    best_losses = _start_losses(teacher, prior, best, targets, config)
    for candidate in range(1, config.num_candidates):
        other = _candidate(prior, image_indices, seed, candidate).to(teacher.device)
        losses = _start_losses(teacher, prior, other, targets, config)
        nearer = losses < best_losses
        best[nearer], best_losses[nearer] = other[nearer], losses[nearer]
    return best


def _assigned_starts(
    teacher: Teacher,
    prior: ImagePrior,
    targets: Tensor,
    image_indices: Sequence[int],
    seed: int,
    config: RefinementConfig,
) -> Tensor:
    """Draw `num_candidates` starts per image and give each target one, so that the sum of the distances is least.

    Batches are assigned by themselves: the cost of an exact assignment grows with the cube of their size, and that of
    a whole set with the number of its images.
    """
    starts = torch.cat([_candidate(prior, image_indices, seed, c) for c in range(config.num_candidates)])
    logits = torch.cat(
        [_start_logits(teacher, prior, part.to(teacher.device)) for part in starts.tensor_split(config.num_candidates)]
    )
    _, chosen = linear_sum_assignment(_distances(logits, targets, config.temperature).T.cpu().numpy())
    return starts[torch.from_numpy(chosen)]


def _distances(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy [m, n] of each of m outputs and each of n targets; the kl differs by a target's own."""
    return -log_softmax(logits.float() / temperature, dim=1) @ targets.T


def _candidate(prior: ImagePrior, image_indices: Sequence[int], seed: int, candidate: int) -> Tensor:
    stream = f"prior/{candidate}" if candidate else "prior"
    return prior.start(image_indices, seed=seed, stream=stream)


def _start_losses(
    teacher: Teacher, prior: ImagePrior, starts: Tensor, targets: Tensor, config: RefinementConfig
) -> Tensor:
    logits = _start_logits(teacher, prior, starts)
    return target_losses(logits, targets, temperature=config.temperature, loss=config.loss)


@torch.no_grad()
def _start_logits(teacher: Teacher, prior: ImagePrior, starts: Tensor) -> Tensor:
    images = prior.decode(starts).contiguous(memory_format=torch.channels_last)
    with autocast_on_gpu(teacher.device):
        return joined([teacher(part) for part in teacher.passes.split(images)])


def _objective(
    teacher: Teacher, targets: Tensor, config: RefinementConfig, target_features: Tensor | None, feature_weight: float
) -> Objective:
    """Return the function from images to the loss terms by name."""

    def terms(images: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
        with autocast_on_gpu(teacher.device):
            if not config.activation_weight and target_features is None:
                return {config.loss: distance(teacher(images), rows)}
            logits, features = teacher.forward_with_features(images)
        found: dict[str, Tensor] = {config.loss: distance(logits, rows)}
        if config.activation_weight:
            found["activation"] = -config.activation_weight * features.float().abs().mean(1)
        if target_features is not None:
            difference = _comparable(teacher, features.float()) - target_features[rows]
            variance = target_features.var().clamp_min(1e-12)
            found["features"] = feature_weight * difference.square().mean(1) / variance
        return found

    def distance(logits: Tensor, rows: Tensor) -> Tensor:
        chosen = targets if len(rows) == len(targets) else targets[rows]
        return target_losses(logits, chosen, temperature=config.temperature, loss=config.loss)

    return terms


def _comparable(teacher: Teacher, features: Tensor) -> Tensor:
    """Return features [n, d] as the next layer sees them: what a ReLU cuts off has no influence and is not compared."""
    features = features.to(teacher.device)
    return features.relu() if teacher.layer_is_rectified else features
