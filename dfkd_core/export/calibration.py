"""Images for the calibration of other people's quantisers, from a model alone.

A quantiser runs a network on a few hundred images and notes the range of each activation. These are images of the
default prior: shapes and crops of public photographs, half of them with the mean and the standard deviation of the
network's normalisation. Eight times as many are drawn. One after the other is taken with which the mean over those that
are taken comes nearest to the mean and the variance of each channel that BatchNorm remembers of the training images.
A network without BatchNorm gets the same share of each class in its answers instead. The greedy choice is herding
(Welling, ICML 2009).

n images, m of them drawn, c channels, h height, w width, f channels of a layer, d numbers per image, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dfkd_core.common.digests import write_atomically
from dfkd_core.common.pixels import dequantise, quantise
from dfkd_core.errors import ConfigError
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.layers import BatchNorm
from dfkd_core.models.programs import program_input
from dfkd_core.models.teacher import Teacher
from dfkd_core.priors.base import ImagePrior
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.synthesis.descent import DescentConfig

__all__ = ["ARRAY", "Calibration", "make_calibration", "write_calibration"]

ARRAY = "images"
"""Name of the array in a file of `write_calibration`."""

_PRIOR = DescentConfig(prior="mixed", toned_share=0.5)
_DRAWS_PER_IMAGE = 8
# Images that are chosen together: enough for many classes, and few enough for the memory.
_AT_ONCE = 256
_IN_A_PASS = 64
# Of each layer; of wide ones these are spread evenly.
_MOST_CHANNELS = 64
# In standard deviations and variances, so that no single channel of one image decides.
_LARGEST_DEVIATION = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calibration images of a network.

    Example:
        >>> from dfkd_core import Calibration, ModelCard, build_classifier, make_calibration
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> made: Calibration = make_calibration(build_classifier(card, seed=0), 20)
        >>> made.images.shape, made.images.dtype
        (torch.Size([20, 1, 32, 32]), torch.uint8)
    """

    images: Tensor
    """uint8 [n, c, h, w]."""
    inputs: Tensor
    """The same as the network takes them: normalised, in its precision, [n, c, h, w] or [n, h, w, c]."""
    class_counts: tuple[int, ...]
    """Number of images that the network assigns to each class [k]."""


def make_calibration(
    classifier: Classifier, num_images: int = 256, *, seed: int = 0, on_progress: OnProgress = ignore
) -> Calibration:
    """Make calibration images for a network, without any of its data.

    Args:
        classifier: The network, from `bring_teacher` or `bring_module`; it is frozen and stays as it is otherwise.
        num_images: Number of images; 100 to 1,000 are usual.
        seed: Seed of every random draw.
        on_progress: Called with the number of images that are made.

    Raises:
        ConfigError: The number of images is below 1.
        TeacherError: As `Teacher`.

    Example:
        >>> from dfkd_core import ModelCard, build_classifier, make_calibration
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> made = make_calibration(build_classifier(card, seed=0), 20)
        >>> made.inputs.shape, made.inputs.dtype, sum(made.class_counts)
        (torch.Size([20, 1, 32, 32]), torch.float32, 20)
    """
    if num_images < 1:
        raise ConfigError(f"The number of calibration images must be at least 1, got {num_images}. Try: 256")
    teacher = Teacher(classifier)
    prior, parts, labels = _PRIOR.build_prior(classifier.card), [], []
    total = torch.zeros(())
    for first in range(0, num_images, _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, num_images))
        drawn = _draw(prior, indices, seed)
        answers, deviations = _deviations(teacher, drawn)
        chosen, total = _choose(deviations, len(indices), total)
        parts.append(drawn[chosen])
        labels.append(answers[chosen])
        on_progress(Progress(stage="calibrate", done=indices.stop, total=num_images, unit="images"))
    images = torch.cat(parts)
    counts = torch.cat(labels).bincount(minlength=classifier.card.num_classes)
    return Calibration(images=images, inputs=_inputs(classifier, images), class_counts=tuple(counts.tolist()))


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the inputs as the only array, `images`, of a NumPy archive; equal inputs give equal bytes.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from dfkd_core import ModelCard, build_classifier, make_calibration, write_calibration
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     write_calibration(Path(folder) / "calib.npz", make_calibration(build_classifier(card, seed=0), 4))
        ...     np.load(Path(folder) / "calib.npz")["images"].shape
        (4, 1, 32, 32)
    """
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{ARRAY: calibration.inputs.numpy()})  # type: ignore[arg-type]  # it has a flag too


def _inputs(classifier: Classifier, images: Tensor) -> Tensor:
    taken = program_input(classifier.network)
    # NumPy has no bfloat16.
    dtype = torch.float32 if taken.dtype == torch.bfloat16 else taken.dtype
    inputs = classifier.normalise(dequantise(images)).to(dtype)
    return (inputs.permute(0, 2, 3, 1) if taken.channels_last else inputs).contiguous()


def _draw(prior: ImagePrior, indices: Sequence[int], seed: int) -> Tensor:
    """Draw several images for each index, uint8 [m, c, h, w]."""
    streams = (f"calibrate/{number}" for number in range(_DRAWS_PER_IMAGE))
    return torch.cat([quantise(prior.decode(prior.start(indices, seed=seed, stream=stream))) for stream in streams])


@torch.no_grad()
def _deviations(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the network's classes [m] for images, and the deviations [m, d] whose mean over images should be zero."""
    layers = [m for m in teacher.network.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    classes, rows = [], []
    for pixels in torch.split(images, _IN_A_PASS):
        for part in teacher.passes.split(dequantise(pixels)):
            with _recording(layers, len(part)) as found:
                logits = teacher(part)
            classes.append(logits.argmax(1))
            shares = one_hot(classes[-1], logits.shape[1]).float() - 1 / logits.shape[1]
            rows.append(torch.cat(found or [shares], 1))
    return torch.cat(classes), torch.cat(rows)


@contextmanager
def _recording(layers: Sequence[BatchNorm], num_images: int) -> Iterator[list[Tensor]]:
    """Collect, per call of a layer within the block, each image's deviations [n, f] of its mean and its variance."""
    found: list[Tensor] = []

    def record(layer: Any, args: Any, output: Any) -> None:
        values = args[0]
        if len(values) != num_images:
            # It mixes images with other dimensions.
            return
        channels = torch.linspace(0, values.shape[1] - 1, min(values.shape[1], _MOST_CHANNELS)).long()
        mean, variance = layer.running_mean[channels], layer.running_var[channels].clamp_min(layer.eps)
        centred = values[:, channels].flatten(2) if values.dim() > 2 else values[:, channels, None]
        centred = centred - mean[:, None]
        for moment in (centred.mean(2) / variance.sqrt(), centred.square().mean(2) / variance - 1):
            found.append(moment.clamp(-_LARGEST_DEVIATION, _LARGEST_DEVIATION))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _choose(deviations: Tensor, num_images: int, total: Tensor) -> tuple[Tensor, Tensor]:
    """Take rows one after the other so that the sum of all that are taken stays as near to zero as possible.

    Args:
        deviations: One row for each image, [m, d].
        num_images: Number n of rows to take.
        total: The sum of the rows that were taken before.

    Returns:
        Positions of the rows, int64 [n], and the new sum.
    """
    lengths, is_left = deviations.square().sum(1), torch.ones(len(deviations), dtype=torch.bool)
    chosen = []
    total = total.expand(deviations.shape[1])
    for _ in range(num_images):
        costs = lengths + 2 * (deviations @ total)
        chosen.append(int(costs.where(is_left, torch.inf).argmin()))
        is_left[chosen[-1]] = False
        total = total + deviations[chosen[-1]]
    return torch.tensor(chosen), total
