"""Gradient descent on images towards soft targets of the teacher's output.

After Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021:

    min_x  KL(y || softmax(T(x) / tau)) + lambda_a * L_a,    L_a = -mean |f(x)|

n images, c channels, h height, w width, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.models.access import Inspectable
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import Fraction, NonNegative, Positive, config_section
from dfkd_core.synthesis.descent import DescentConfig, Objective, descend

__all__ = ["DescentConfig", "Objective", "RefinementConfig", "descend", "refine", "target_losses"]


@config_section
class RefinementConfig(DescentConfig):
    """How images are refined towards their soft targets."""

    refined_share: Fraction = 1.0
    """Share of the images that are refined, spread evenly; the others stay as drawn, at about 1 % of the cost."""
    temperature: Positive = 20.0
    """Temperature of the soft targets and of the teacher outputs compared with them."""
    activation_weight: NonNegative = 0.0
    """lambda_a, the weight of -mean|features| of the modelled layer; 0.05 to 0.1 in the paper; 0 skips the term."""


def target_losses(logits: Tensor, soft_targets: Tensor, *, temperature: float) -> Tensor:
    """Return the divergence of each image's output from its soft target, [n].

    sum_k y_k (log y_k - log p_k) with p = softmax(logits / temperature).

    Args:
        logits: [n, k].
        soft_targets: [n, k], rows sum to 1.
        temperature: Divides the logits, not the soft targets.
    """
    cross_entropy = -(soft_targets * log_softmax(logits.float() / temperature, dim=1)).sum(1)
    return cross_entropy + torch.xlogy(soft_targets, soft_targets).sum(1)


def refine(
    teacher: Inspectable,
    soft_targets: Tensor,
    *,
    image_indices: Sequence[int],
    seed: int,
    config: RefinementConfig,
    on_progress: OnProgress = ignore,
) -> Tensor:
    """Make one image per soft target.

    The loss is summed over images and Adam works element by element, so an image does not depend on the others.

    Args:
        teacher: The frozen teacher; its weights get no gradient.
        soft_targets: [n, k], rows sum to 1.
        image_indices: The images' positions in the whole transfer set, which determine the random draws.
        seed: The run's seed.
        config: Prior, weights and number of steps.
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
        images[chosen] = descend(
            prior,
            prior.start(indices, seed=seed),
            _objective(teacher, soft_targets[chosen].to(teacher.device), config),
            image_indices=indices,
            descent=config,
            device=teacher.device,
            images_per_pass=teacher.passes.images_per_pass(len(indices), with_gradient=True),
            on_progress=on_progress,
        )
    return images


def _is_refined(image_indices: Sequence[int], share: float) -> Tensor:
    """Return whether each image is refined, bool [n]; any run of consecutive images has the share, to one image."""
    positions = torch.tensor([int(index) for index in image_indices], dtype=torch.float64)
    return ((positions + 1) * share).floor() > (positions * share).floor()


def _objective(teacher: Inspectable, targets: Tensor, config: RefinementConfig) -> Objective:
    """Return the function that maps images to named loss terms."""

    def terms(images: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
        features = None
        with autocast_on_gpu(teacher.device):
            if config.activation_weight:
                logits, features = teacher.forward_with_features(images)
            else:
                logits = teacher(images)
        found = {"kl": target_losses(logits, targets[rows], temperature=config.temperature)}
        if features is not None:
            found["activation"] = -config.activation_weight * features.float().abs().mean(1)
        return found

    return terms
