"""Gradient descent on images towards soft targets of the teacher's output.

After Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021:

    min_x  KL(y || softmax(T(x) / tau)) + lambda_a * L_a,    L_a = -mean |f(x)|

n images, c channels, h height, w width, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "draw_of_classes",
    "refine",
    "target_losses",
]


@config_section
class RefinementConfig(DescentConfig):
    """How images are refined towards their soft targets."""

    refined_share: Fraction = 1.0
    """Share of the images that are refined, spread evenly; the others stay as drawn, at about 1 % of the cost."""
    draws_per_image: Annotated[int, Ge(1), Le(100)] = 1
    """Images drawn for each one that stays as drawn. Above 1, the teacher labels all of them, and those stay whose
    classes are the most likely ones of the soft targets, as far as the batch's draws allow. Drawn images fall into a
    few classes; this evens them out."""
    temperature: Positive = 20.0
    """Temperature of the soft targets and of the teacher outputs compared with them."""
    activation_weight: NonNegative = 0.0
    """lambda_a, the weight of -mean|features| of the modelled layer; 0.05 to 0.1 in the paper; 0 skips the term."""

    @property
    def couples_images(self) -> bool:
        """The images of a batch are chosen among all its draws."""
        return self.draws_per_image > 1 and self.refined_share < 1

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
        wanted, draws = soft_targets[~chosen].argmax(1), config.draws_per_image
        images[~chosen] = draw_of_classes(teacher, prior, wanted, drawn, seed=seed, draws_per_image=draws)
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
def draw_of_classes(
    teacher: Labeller,
    prior: ImagePrior,
    wanted: Tensor,
    image_indices: Sequence[int],
    *,
    seed: int,
    draws_per_image: int,
) -> Tensor:
    """Draw several images for each one that is wanted, and return those that fit the wanted classes.

    Args:
        teacher: Labels the draws.
        prior: Draws them.
        wanted: Classes, int64 [n].
        image_indices: The images' positions in the whole transfer set, which determine the random draws.
        seed: The run's seed.
        draws_per_image: Draws for each image; 1 returns the draws as they are.

    Returns:
        Images float32 [n, c, h, w] in [0, 1] on the CPU.
    """
    # The first draws are those of a set without a choice.
    streams = ["prior", *(f"prior/{number}" for number in range(1, draws_per_image))]

    def draw(stream: str, positions: Sequence[int]) -> Tensor:
        indices = [image_indices[position] for position in positions]
        return prior.decode(prior.start(indices, seed=seed, stream=stream)).float()

    everything = range(len(image_indices))
    if draws_per_image == 1:
        return draw(streams[0], everything)
    logits = [teacher.label(draw(stream, everything).to(teacher.device)).cpu() for stream in streams]
    chosen = choose_of_classes(torch.cat(logits).softmax(1), wanted)
    images = torch.empty(0)
    # Drawn again, since all draws together may not fit into memory.
    for number, stream in enumerate(streams):
        places = (chosen // len(wanted) == number).nonzero()[:, 0]
        made = draw(stream, (chosen[places] % len(wanted)).tolist())
        images = images if len(images) else made.new_empty(len(wanted), *made.shape[1:])
        images[places] = made
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
