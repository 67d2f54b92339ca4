"""The card of a network: its normalisation and its outputs, from the user's settings or detected.

n images, c channels, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.architectures import shape_parameters
from dfkd_core.models.classifier import Classifier, ModelCard, describe, in_memory_format
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.outputs import (
    OutputKind,
    check_output_kind,
    find_output_key,
    find_output_kind,
    is_from_sigmoid,
    output_doubt,
    select_output,
    to_logits,
)
from dfkd_core.teachers.preflight import probe_images, try_forward
from dfkd_core.teachers.published import PublishedWeights, usual_normalisation
from dfkd_core.teachers.shapes import BuildShape
from dfkd_core.teachers.source import SourceConfig, values_of

__all__ = ["describe_network", "given_normalisation"]

_Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def describe_network(
    network: nn.Module,
    name: str,
    shape: tuple[int, int],
    config: SourceConfig,
    notes: list[str],
    *,
    program: Path | None = None,
    published: PublishedWeights | None = None,
    build: BuildShape | None = None,
) -> Classifier:
    """Return the network as a classifier with its given properties, and detect the others.

    Args:
        network: In eval mode.
        name: Its name or the kind of program.
        shape: Channels and size in pixels of its images.
        config: The given properties.
        notes: Detected properties are added to it.
        program: The file of a program.
        published: The published weights that it has.
        build: The arguments that it was built with; None if it was not built by name.

    Raises:
        ConfigError: The normalisation or the names of the classes do not fit.
        TeacherError: Its outputs are not those of a classifier, or contradict a given property.
    """
    channels, size = shape
    mean, std = _normalisation(config, channels, name, published, notes)
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    inputs = (probe_images((channels, size, size)) - shift) / scale
    answer = try_forward(network, inputs)
    key = str(config.output_key) or find_output_key(answer, config.num_classes)
    output = select_output(answer, key)
    kind = _output_kind(network, inputs, output, key, config)
    notes.append(f"answers with {kind.replace('_', ' ')}" + (f" at {key!r}" if key else ""))
    if doubt := output_doubt(output, kind):
        notes.append(doubt)
    classes = to_logits(output, kind).shape[1]
    if config.num_classes not in (0, classes, output[0].numel()):
        raise TeacherError(
            f"The network has {classes} outputs{f' at {key!r}' if key else ''} and teacher.source.num_classes is "
            f"{config.num_classes}. Correct it" + (", or set teacher.source.output_key" if key else "")
        )
    arguments = {**config.arguments, **(published.kept if published else {})}
    card = ModelCard(
        network=name,
        in_channels=channels,
        image_size=size,
        num_classes=classes,
        mean=mean,
        std=std,
        layer=OUTPUT,
        class_names=tuple(config.class_names) or (published.class_names if published else ()),
        arguments=arguments | (_units_argument(name, build, output[0].numel()) if build else {}),
        outputs=kind,
        output_key=key,
        program_sha256=file_sha256(program) if program else "",
    )
    classifier = Classifier(network.eval(), card, program=program)
    describe(classifier)
    return in_memory_format(classifier)


def _output_kind(network: nn.Module, inputs: Tensor, output: Tensor, key: str, config: SourceConfig) -> OutputKind:
    if config.outputs != "auto":
        check_output_kind(output, config.outputs)
        return config.outputs
    kind = find_output_kind(output)
    if kind == "logits" and output_doubt(output, kind):
        # Only the graph distinguishes sigmoids from logits of the same range.
        if is_from_sigmoid(select_output(try_forward(network, inputs[:2], with_graph=True), key)):
            return "sigmoids"
    return kind


def _units_argument(name: str, build: BuildShape, units: int) -> dict[str, int]:
    """Return the argument that builds a single output for two classes again."""
    parameter = shape_parameters(name).get("num_classes")
    return {parameter.name: build.num_classes or 1} if parameter and units == 1 and build.num_classes != 2 else {}


def _normalisation(
    config: SourceConfig, channels: int, name: str, published: PublishedWeights | None, notes: list[str]
) -> _Normalisation:
    """Return mean and standard deviation in units of [0, 1]."""
    is_given = config.mean != () or config.std != ()
    if published and not is_given:
        return _per_channel(published.mean, channels), _per_channel(published.std, channels)
    if not is_given and tuple(config.value_range) == (0.0, 1.0):
        usual = usual_normalisation(name)
        what = f"that of {name.partition(':')[0]} is used" if usual else "pixels are passed as they are, in [0, 1]"
        notes.append(
            f"normalisation: none given, so {what}. If the teacher was trained with another one, set "
            "teacher.source.mean and std"
        )
        if usual:
            return _per_channel(usual[0], channels), _per_channel(usual[1], channels)
    if (config.mean == ()) != (config.std == ()):
        notes.append("normalisation: only one of mean and std is given; the other is " + "01"[config.std == ()])
    return given_normalisation(config, channels)


def given_normalisation(config: SourceConfig, channels: int) -> _Normalisation:
    """Return the mean and the standard deviation that the settings have, in units of [0, 1], one per channel.

    Raises:
        ConfigError: There are neither one nor as many as channels.
    """
    low, high = config.value_range
    mean = _one_or_each(values_of(config.mean) or (0.0,), channels)
    std = _one_or_each(values_of(config.std) or (1.0,), channels)
    return tuple((m - low) / (high - low) for m in mean), tuple(s / (high - low) for s in std)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return the published values of three channels, for one channel their mean."""
    return (sum(values) / len(values),) if channels == 1 else _one_or_each(values, channels)


def _one_or_each(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(float(value) for value in values)
    if len(values) == 1:
        return (float(values[0]),) * channels
    raise ConfigError(
        f"teacher.source.mean and std must have one value or one per channel, got {len(values)} for {channels} channels"
    )
