"""Gradient descent on images towards soft targets of the teacher's output.

After Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021:

    min_x  KL(y || softmax(T(x) / tau)) + lambda_a * L_a,    L_a = -mean |f(x)|

n images, c channels, h height, w width, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import log_softmax

from dfkd_core.common.devices import autocast_on_gpu
from dfkd_core.models.access import Inspectable, Labeller
from dfkd_core.priors.base import ImagePrior
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import Fraction, NonNegative, Positive, config_section
from dfkd_core.synthesis.descent import DescentConfig, Objective, descend

__all__ = [
    "DescentConfig",
    "Objective",
    "RefinementConfig",
    "choose_of_classes",
    "descend",
    "draw_evenly",
    "refine",
    "target_losses",
]


# Enough for even classes, and a divisor of the usual batches, for which no draws outside of the batch are made.
_CHOSEN_TOGETHER = 250


@config_section
class RefinementConfig(DescentConfig):
    """How images are refined towards their soft targets."""

    refined_share: Fraction = 1.0
    """Share of the images that are refined, spread evenly; the others stay as drawn, at about 1 % of the cost."""
    draws_per_image: Annotated[int, Ge(1), Le(100)] = 1
    """Images drawn for each one that stays as drawn. Above 1, the teacher labels all of them, and those stay that even
    out its classes, as far as the draws of 250 images allow. As drawn, most images fall into a few classes."""
    temperature: Positive = 20.0
    """Temperature of the soft targets and of the teacher outputs compared with them."""
    activation_weight: NonNegative = 0.0
    """lambda_a, the weight of -mean|features| of the modelled layer; 0.05 to 0.1 in the paper; 0 skips the term."""

    def is_refined(self, image_indices: Sequence[int]) -> Tensor:
        """Return whether the images at these positions of the set are changed, bool [n]; the others stay as drawn."""
        return _is_chosen(image_indices, self.refined_share) & (self.iterations > 0)


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
    chosen = _is_chosen(image_indices, config.refined_share)
    images = torch.empty(len(image_indices), *teacher.card.image_shape)
    if not chosen.all():
        drawn = [index for index, is_chosen in zip(image_indices, chosen.tolist()) if not is_chosen]
        draws, share = config.draws_per_image, config.refined_share
        images[~chosen] = draw_evenly(teacher, prior, drawn, seed=seed, draws_per_image=draws, refined_share=share)
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


@torch.no_grad()
def draw_evenly(
    teacher: Labeller,
    prior: ImagePrior,
    image_indices: Sequence[int],
    *,
    seed: int,
    draws_per_image: int,
    refined_share: float = 0.0,
) -> Tensor:
    """Draw several images for each one that stays as drawn, and return those that even out the classes.

    The choice is made within fixed groups of consecutive images, so an image depends on its index alone.

    Args:
        teacher: Labels the draws.
        prior: Draws them.
        image_indices: Ascending positions in the whole transfer set of the images to return, none of them refined.
        seed: The run's seed.
        draws_per_image: Draws for each image; 1 returns the draws as they are.
        refined_share: Share of the set that is refined, and takes no part in the choice.

    Returns:
        Images float32 [n, c, h, w] in [0, 1] on the CPU.
    """
    # The first draws are those of a set without a choice.
    streams = ["prior", *(f"prior/{number}" for number in range(1, draws_per_image))]
    if draws_per_image == 1:
        return _drawn(prior, image_indices, seed, streams[0])
    parts = []
    for group, found in groupby(image_indices, lambda index: int(index) // _CHOSEN_TOGETHER):
        everyone = range(group * _CHOSEN_TOGETHER, (group + 1) * _CHOSEN_TOGETHER)
        members = [index for index, is_refined in zip(everyone, _is_chosen(everyone, refined_share)) if not is_refined]
        wanted = torch.tensor(members) % teacher.card.num_classes
        logits = [teacher.label(_drawn(prior, members, seed, name).to(teacher.device)).cpu() for name in streams]
        chosen = dict(zip(members, choose_of_classes(torch.cat(logits).softmax(1), wanted).tolist(), strict=True))
        parts.append(_redrawn(prior, [chosen[int(index)] for index in found], members, seed, streams))
    return torch.cat(parts)


def _drawn(prior: ImagePrior, image_indices: Sequence[int], seed: int, stream: str) -> Tensor:
    return prior.decode(prior.start(image_indices, seed=seed, stream=stream)).float()


def _redrawn(
    prior: ImagePrior, chosen: Sequence[int], members: Sequence[int], seed: int, streams: Sequence[str]
) -> Tensor:
    """Return chosen draws of a group again, since all of its draws together may not fit into memory."""
    number, member = (
        torch.tensor(chosen).div(len(members), rounding_mode="floor"),
        torch.tensor(chosen) % len(members),
    )
    images = torch.empty(0)
    for place, stream in enumerate(streams):
        rows = (number == place).nonzero()[:, 0]
        made = _drawn(prior, [members[position] for position in member[rows].tolist()], seed, stream)
        images = images if len(images) else made.new_empty(len(chosen), *made.shape[1:])
        images[rows] = made
    return images


def choose_of_classes(probabilities: Tensor, wanted: Tensor) -> Tensor:
    """Return a draw for each wanted class: in their order those of this class, then the likeliest ones that are left.

    Args:
        probabilities: Of m >= n draws, [m, k].
        wanted: Classes, int64 [n].

    Returns:
        Positions of different draws, int64 [n].
    """
    classes = probabilities.argmax(1)
    chosen, is_left = torch.full_like(wanted, -1), torch.ones(len(probabilities), dtype=torch.bool)
    for label in range(probabilities.shape[1]):
        places, fitting = (wanted == label).nonzero()[:, 0], (classes == label).nonzero()[:, 0]
        count = min(len(places), len(fitting))
        chosen[places[:count]] = fitting[:count]
        is_left[fitting[:count]] = False
    for place in (chosen < 0).nonzero()[:, 0].tolist():
        likeliest = probabilities[:, wanted[place]].where(is_left, -1.0).argmax()
        chosen[place] = likeliest
        is_left[likeliest] = False
    return chosen


def _is_chosen(image_indices: Sequence[int], share: float) -> Tensor:
    """Return whether each image is chosen, bool [n]; any run of consecutive images has the share, to one image."""
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
