"""The possible uses of a teacher and their run time on this machine, from trials on a few images."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dfkd_core.errors import DfkdError
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import SOURCES, StatisticsConfig, estimate_statistics
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer, method_names, prepare_method

__all__ = ["Fit", "Inspection", "inspect_teacher"]

_NORMALISATIONS = ("BatchNorm", "GroupNorm", "LayerNorm", "InstanceNorm", "RMSNorm", "LocalResponseNorm")
_TIMED_STEPS = 2
_TIMED_SECONDS = 0.25
_FIRST_TIMED_IMAGES = 8
_MAX_TIMED_IMAGES = 512


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether something can be used with a teacher."""

    reason: str
    """Why it cannot, empty if it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The possible uses of a teacher, and their cost."""

    num_parameters: int
    """Number of parameters of the network."""
    num_features: int
    """Units d of the modelled layer."""
    normalisations: dict[str, int]
    """Number of normalisation layers by class."""
    statistics: dict[str, Fit]
    """Fit of each source of feature statistics."""
    methods: dict[str, Fit]
    """Fit of each synthesis method."""
    method: str
    """Method that was timed."""
    seconds_per_1000_images: float | None
    """Time of the configured synthesis on the teacher's device with the available threads; None if it does not fit."""
    images_per_pass: int
    """Images of a batch that are refined at once in the available memory."""
    bytes_per_pass: int
    """Memory of such a pass."""
    bytes_per_1000_images: int
    """Size of 1,000 images in the transfer set, with logits and soft targets."""


def inspect_teacher(
    teacher: Teacher, statistics: StatisticsConfig, synthesis: SynthesisConfig, *, seed: int
) -> Inspection:
    """Find out what works with a teacher, and time the configured synthesis for about a second or a few small batches.

    Args:
        teacher: The frozen teacher.
        statistics: Settings of the statistics; `source` is varied.
        synthesis: Settings of the transfer set; `method` is varied.
        seed: Addresses the random draws.
    """
    network = teacher.network
    kinds = Counter(kind for module in network.modules() if (kind := _normalisation(module)))
    fits, found = {}, None
    for source in SOURCES:
        config = dataclasses.replace(statistics, source=source, num_probes=min(statistics.num_probes, 64))
        try:
            estimated = estimate_statistics(teacher, config, seed=seed)
        except DfkdError as error:
            fits[source] = Fit(str(error))
            continue
        fits[source] = Fit("")
        if found is None or source == statistics.source:
            found = estimated
    assert found is not None, "probes fit every teacher"
    methods = {
        name: _method_fit(teacher, dataclasses.replace(synthesis, method=name), found) for name in method_names()
    }
    passes, card = teacher.passes, teacher.card
    images_per_pass = passes.images_per_pass(synthesis.batch_size, with_gradient=True)
    pixels = card.in_channels * card.image_size**2
    fits_configured = not methods[synthesis.method].reason
    return Inspection(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_features=teacher.num_features,
        normalisations=dict(kinds),
        statistics=fits,
        methods=methods,
        method=synthesis.method,
        seconds_per_1000_images=_seconds(teacher, synthesis, found, seed) if fits_configured else None,
        images_per_pass=images_per_pass,
        bytes_per_pass=int(passes.cost(with_gradient=True).of(images_per_pass)),
        # One byte per pixel, two float32 numbers per class.
        bytes_per_1000_images=1000 * (pixels + 8 * card.num_classes),
    )


def _normalisation(module: nn.Module) -> str:
    """Return the class of a normalisation layer, also of one in a program; empty for other modules."""
    kind = str(getattr(module, "original_name", type(module).__name__))
    if any(name in kind for name in _NORMALISATIONS):
        return kind
    return "BatchNorm" if "running_mean" in dict(module.named_buffers(recurse=False)) else ""


def _method_fit(teacher: Teacher, config: SynthesisConfig, statistics: FeatureStatistics) -> Fit:
    try:
        build_synthesizer(config, teacher, statistics)
    except DfkdError as error:
        return Fit(str(error))
    return Fit("")


def _seconds(teacher: Teacher, config: SynthesisConfig, statistics: FeatureStatistics, seed: int) -> float:
    """Time drawing alone and drawing with a few steps, and extrapolate to all steps."""
    trials = [_trial(teacher, _with_steps(config, steps), statistics, seed) for steps in (0, _TIMED_STEPS)]
    largest = min(_MAX_TIMED_IMAGES, config.batch_size)
    count = min(_FIRST_TIMED_IMAGES, largest)
    # The first passes of a program compile it.
    _times(trials, count)
    times = _times(trials, count)
    while sum(times) < _TIMED_SECONDS and count < largest:
        count = min(4 * count, largest)
        times = _times(trials, count)
    drawing, stepping = map(min, times, _times(trials, count))
    steps = config.method_config.steps
    per_step = max(0.0, stepping - drawing) / _TIMED_STEPS
    return 1000 / count * (drawing + (steps.iterations if steps else 0) * per_step)


def _times(trials: Sequence[Callable[[int], float]], count: int) -> list[float]:
    return [trial(count) for trial in trials]


def _with_steps(config: SynthesisConfig, steps: int) -> SynthesisConfig:
    """Return the configuration with another number of gradient steps, if the method has any."""
    changed: dict[str, Any] = {config.method: config.method_config.with_iterations(steps)}
    return dataclasses.replace(config, methods=dataclasses.replace(config.methods, **changed))


def _trial(
    teacher: Teacher, config: SynthesisConfig, statistics: FeatureStatistics, seed: int
) -> Callable[[int], float]:
    """Return a function that makes and labels so many images and returns the seconds."""
    synthesizer = build_synthesizer(config, teacher, statistics, prepare_method(config, teacher, statistics, seed=seed))

    def run(count: int) -> float:
        started = time.perf_counter()
        made = synthesizer.synthesize(range(count), seed=seed)
        with torch.no_grad():
            teacher(made.images.to(teacher.device))
        return time.perf_counter() - started

    return run
