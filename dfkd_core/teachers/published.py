"""Properties of the weights that torchvision and timm publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfkd_core.errors import ConfigError
from dfkd_core.models.architectures import (
    TIMM,
    TORCHVISION,
    import_timm,
)
from dfkd_core.models.factories import split_width
from dfkd_core.teachers.source import SourceConfig

__all__ = ["PublishedWeights", "find_published", "usual_normalisation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Properties of weights that a package publishes."""

    arguments: dict[str, Any]
    """Keyword arguments that load them."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that the network needs to compute the same function."""
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()


def find_published(config: SourceConfig) -> PublishedWeights | None:
    """Return the published weights that the source names; None if it names a file or no weights."""
    if not config.weights or Path(config.weights).exists() or "/" in config.weights or "." in config.weights:
        return None
    if config.model.startswith(TORCHVISION):
        from dfkd_core.common.vision import models

        name = config.model.removeprefix(TORCHVISION)
        try:
            entries = models.get_model_weights(name)
            entry = entries.DEFAULT if config.weights == "pretrained" else entries[config.weights]
        except (KeyError, ValueError):
            raise ConfigError(
                f"torchvision publishes no weights {config.weights!r} of {name!r}, and there is no such file. Correct "
                "teacher.source.weights"
            ) from None
        transform = entry.transforms()
        if not hasattr(transform, "crop_size"):
            raise ConfigError(f"{config.model} does not classify images. Name a network that does")
        return PublishedWeights(
            arguments={"weights": entry.name},
            # These two were trained with another normalisation, to which their forward converts.
            kept={"transform_input": True} if name in ("googlenet", "inception_v3") else {},
            num_classes=len(entry.meta["categories"]),
            image_size=transform.crop_size[0],
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            class_names=tuple(entry.meta["categories"]),
        )
    if config.model.startswith(TIMM):
        name = config.model.removeprefix(TIMM)
        if config.weights != "pretrained":
            name = f"{name}.{config.weights}"
        cfg = import_timm().get_pretrained_cfg(name)
        if cfg is None or not cfg.has_weights:
            raise ConfigError(
                f"timm publishes no weights {config.weights!r} of {config.model.removeprefix(TIMM)!r}, and there is no "
                "such file. Correct teacher.source.weights"
            )
        return PublishedWeights(
            arguments={"pretrained": True},
            num_classes=cfg.num_classes,
            image_size=cfg.input_size[-1],
            mean=tuple(cfg.mean),
            std=tuple(cfg.std),
        )
    return None


def usual_normalisation(name: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return mean and standard deviation of the training of the package's own weights; None for other networks."""
    name, _ = split_width(name)
    if name.startswith(TORCHVISION):
        from dfkd_core.common.vision import models

        transform = models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT.transforms()
        return (transform.mean, transform.std) if hasattr(transform, "mean") else None
    if name.startswith(TIMM):
        cfg = import_timm().get_pretrained_cfg(name.removeprefix(TIMM))
        return (cfg.mean, cfg.std) if cfg is not None else None
    return None
