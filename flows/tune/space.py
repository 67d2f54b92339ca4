"""The settings that `dfkd tune` may change, and the smaller size of a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfkd_core.errors import ConfigError
from dfkd_core.evaluation.proxy import HELD_OUT_PRIOR
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten

__all__ = ["Domain", "LogRange", "reduced", "search_space"]


@dataclass(frozen=True, slots=True)
class LogRange:
    """Numbers from `low` to `high`, drawn evenly on a logarithmic scale."""

    low: float
    high: float


Domain = tuple[Any, ...] | LogRange

# `{steps}` is where the method's gradient steps are set; what a method does not have is left out.
_SPACE: dict[str, Domain] = {
    "{steps}.prior": ("mixed", "procedural", "photos"),
    "{steps}.toned_share": (0.0, 0.5, 1.0),
    "{steps}.refined_share": (0.0, 0.1, 0.25, 0.5, 1.0),
    "{steps}.iterations": (5, 15, 30, 60),
    "{steps}.learning_rate": LogRange(0.005, 0.1),
    "distillation.temperature": LogRange(0.5, 20.0),
    "distillation.learning_rate": LogRange(0.001, 0.03),
    "distillation.feature_weight": (0.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    "distillation.augmentation.shift": (0.0, 0.03125, 0.0625, 0.09375),
    "distillation.mixing": ("none", "mixup", "cutmix"),
}
_MAX_IMAGES = 6000
_MAX_EPOCHS = 15


def search_space(params: Params) -> dict[str, Domain]:
    """Return what can be changed by dotted path; every domain holds the present value.

    Raises:
        ConfigError: The transfer set is made with the prior that the proxy holds out.
    """
    present = flatten(params)
    steps = params.synthesis.steps_path
    paths = {template.format(steps=steps): domain for template, domain in _SPACE.items()}
    found = {path: _holding(present[path], domain) for path, domain in paths.items() if path in present}
    _check_held_out(present, found)
    if present.get(f"{steps}.prior") == "fourier":
        # Its coefficients have no tone.
        del found[f"{steps}.toned_share"]
    return found


def reduced(params: Params) -> Params:
    """Return `params` with at most 6,000 images and 15 epochs."""
    synthesis, distillation = params.synthesis, params.distillation
    return dataclasses.replace(
        params,
        synthesis=dataclasses.replace(synthesis, num_images=min(synthesis.num_images, _MAX_IMAGES)),
        distillation=dataclasses.replace(distillation, epochs=min(distillation.epochs, _MAX_EPOCHS)),
    )


def _holding(value: Any, domain: Domain) -> Domain:
    if isinstance(domain, LogRange):
        return LogRange(min(domain.low, value), max(domain.high, value))
    return tuple(dict.fromkeys((value, *domain)))


def _check_held_out(present: Mapping[str, Any], space: Mapping[str, Domain]) -> None:
    for path in space:
        if present[path] == HELD_OUT_PRIOR:
            raise ConfigError(
                f"{path} is {HELD_OUT_PRIOR!r}, the images on which `dfkd tune` compares students, and a student that "
                f"was trained on them would always seem good. Choose another, for example: --set {path}=mixed"
            )
