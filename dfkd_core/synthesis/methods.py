"""The table of synthesis methods and the configuration of a synthesis."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Annotated, cast

from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.access import Access, Inspectable, Labeller, require_access
from dfkd_core.models.classifier import ModelCard
from dfkd_core.progress import OnProgress, ignore
from dfkd_core.sections import OneOf, PositiveInt, config_section
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, State, Synthesizer
from dfkd_core.synthesis.boundary import BoundaryConfig
from dfkd_core.synthesis.dirichlet import DirichletConfig
from dfkd_core.synthesis.inversion import InversionConfig
from dfkd_core.synthesis.noise import NoiseConfig
from dfkd_core.synthesis.noise_engineered import NoiseEngineeredConfig
from dfkd_core.synthesis.soft_target import SoftTargetConfig

__all__ = [
    "MethodSettings",
    "SynthesisConfig",
    "build_synthesizer",
    "check_num_images",
    "method_names",
    "prepare_method",
]


@config_section
class MethodSettings:
    """The settings of each method, under the method's name."""

    soft_target: SoftTargetConfig = field(default_factory=SoftTargetConfig)
    """Soft targets from the teacher's feature statistics (Wang 2021)."""
    dirichlet: DirichletConfig = field(default_factory=DirichletConfig)
    """Soft targets from class similarities (ZSKD, Nayak et al. 2019), as a baseline."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    """Images of given classes that match the running statistics of the teacher's BatchNorm (DeepInversion, Yin et al.
    2020). An image depends on its batch, so `batch_size` matters: it should be at least ten times the number of classes
    and divide `images_per_shard`."""
    boundary: BoundaryConfig = field(default_factory=BoundaryConfig)
    """Pairs of images on the two sides of a decision boundary (CAKE, Braun et al. 2024)."""
    noise_engineered: NoiseEngineeredConfig = field(default_factory=NoiseEngineeredConfig)
    """Gaussian noise, labelled with the teacher's BatchNorm in batch mode (Raikwar and Mishra 2022). `batch_size`
    matters as for `inversion`. Distil without augmentation: augmented images are labelled by the unmodified teacher."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Gaussian noise, as a lower bound."""


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return tuple(sorted(field.name for field in fields(MethodSettings)))


@config_section
class SynthesisConfig:
    """How a transfer set is made and stored.

    Example:
        >>> from dfkd_core import SynthesisConfig
        >>> config = SynthesisConfig(method="boundary", num_images=200)
        >>> config.method_config.needs, config.steps_path
        ('gradient', 'synthesis.methods.boundary.descent')
    """

    method: Annotated[str, OneOf(method_names)] = "soft_target"
    """The method that makes the images."""
    num_images: PositiveInt = 30_000
    """Images in the transfer set, at least one per class; time and disk space grow with it."""
    images_per_shard: PositiveInt = 5_000
    """Images in one shard (a file), the unit of resumption and of parallel work; the last shard may hold fewer."""
    batch_size: PositiveInt = 500
    """Images refined together, or in parts if memory is short. Changes images only by rounding, except with methods
    whose images depend on their batch; with all others, a GPU refines a whole shard together."""
    methods: MethodSettings = field(default_factory=MethodSettings)

    @property
    def method_config(self) -> MethodConfig:
        """The settings of the chosen method."""
        config: MethodConfig = getattr(self.methods, self.method)
        return config

    @property
    def steps_path(self) -> str:
        """Dotted path of the chosen method's gradient steps in params.yaml; empty for a method without such steps."""
        name = self.method_config.steps_setting
        return f"synthesis.methods.{self.method}.{name}" if name else ""


def prepare_method(
    config: SynthesisConfig,
    teacher: Labeller,
    statistics: FeatureStatistics | None,
    *,
    seed: int,
    on_progress: OnProgress = ignore,
) -> State:
    """Return the state that the chosen method computes once, before the first image; empty for most methods.

    Args:
        config: The method.
        teacher: The frozen teacher.
        statistics: Its feature statistics; None for a method that does not use them.
        seed: The run's seed.
        on_progress: Called with the progress, in any unit.

    Raises:
        TeacherError: The method cannot be used with this teacher.
    """
    if not config.method_config.prepares:
        return NO_STATE
    return config.method_config.prepare(
        _allowed(config, teacher), _known(config, statistics), seed=seed, on_progress=on_progress
    )


def build_synthesizer(
    config: SynthesisConfig, teacher: Labeller, statistics: FeatureStatistics | None, state: State = NO_STATE
) -> Synthesizer:
    """Build the chosen method.

    Args:
        config: The method and the size of the set.
        teacher: The frozen teacher; must allow what the method needs.
        statistics: Its feature statistics; None for a method that does not use them.
        state: The result of `prepare_method`.

    Raises:
        ConfigError: The set has fewer images than the teacher has classes.
        TeacherError: The method cannot be used with this teacher.

    Example:
        >>> from dfkd_core import ModelCard, StatisticsConfig, SynthesisConfig, Teacher
        >>> from dfkd_core import build_classifier, build_synthesizer, estimate_statistics
        >>> size = {"in_channels": 1, "image_size": 32, "num_classes": 10}
        >>> card = ModelCard(network="lenet5", mean=(0.5,), std=(0.25,), layer="fc1", **size)
        >>> teacher = Teacher(build_classifier(card, seed=0))
        >>> statistics = estimate_statistics(teacher, StatisticsConfig(spread="sigma"), seed=0)
        >>> synthesizer = build_synthesizer(SynthesisConfig(method="boundary", num_images=20), teacher, statistics)
        >>> batch = synthesizer.synthesize(range(4), seed=0)
        >>> batch.images.shape, batch.soft_targets.shape
        (torch.Size([4, 1, 32, 32]), torch.Size([4, 10]))
    """
    check_num_images(config, teacher.card)
    return config.method_config.build(_allowed(config, teacher), _known(config, statistics), state)


def _allowed(config: SynthesisConfig, teacher: Labeller) -> Inspectable:
    needed: Access = config.method_config.needs
    remedy = "Choose a method that needs less, such as synthesis.method: noise"
    require_access(teacher, needed, by=f"synthesis.method {config.method}", remedy=remedy)
    return cast(Inspectable, teacher)


def _known(config: SynthesisConfig, statistics: FeatureStatistics | None) -> FeatureStatistics:
    if statistics is None and config.method_config.uses_statistics:
        raise TeacherError(
            f"synthesis.method {config.method} draws from the teacher's feature statistics, and there are none. "
            "Estimate them with estimate_statistics, or choose a method that uses none, such as synthesis.method: noise"
        )
    return cast(FeatureStatistics, statistics)


def check_num_images(config: SynthesisConfig, card: ModelCard) -> None:
    """Check that a set has an image for each class.

    Raises:
        ConfigError: It has fewer images than the teacher has classes.
    """
    if config.num_images < card.num_classes:
        raise ConfigError(
            f"synthesis.num_images is {config.num_images}, the teacher has {card.num_classes} classes: "
            "set at least one image per class"
        )
