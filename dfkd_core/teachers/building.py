"""Teachers by name: builds the network, loads its weights, and finds the shape that fits both.

c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.common.sameness import difference
from dfkd_core.errors import ConfigError, DfkdError, TeacherError
from dfkd_core.models.architectures import build_architecture, shape_parameters
from dfkd_core.models.built_in import is_built_in
from dfkd_core.models.classifier import Classifier, build_classifier
from dfkd_core.models.programs import program_kind
from dfkd_core.models.renaming import fit_weights, rename, renaming_for, unused_names
from dfkd_core.models.weights import FoundWeights, read_state, state_faults
from dfkd_core.teachers.description import describe_network
from dfkd_core.teachers.preflight import check_tensors, probe_images
from dfkd_core.teachers.published import PublishedWeights, find_published
from dfkd_core.teachers.shapes import BuildShape, build_shapes, fitting_shape, size_argument, sizes_to_try
from dfkd_core.teachers.source import SourceConfig

__all__ = ["build_teacher", "has_random_weights"]

# One of several files with the weights of a model.
_PART = re.compile(r"-\d{5}-of-\d{5}\.\w+$")


def build_teacher(config: SourceConfig, hint: int, notes: list[str]) -> Classifier:
    """Build a network by name, with its weights, for the first shape that fits both.

    Args:
        config: The source; its settings are not varied.
        hint: Size in pixels to try first if none is set; 0 for none.
        notes: Detected properties are added to it.

    Raises:
        ConfigError: The network cannot be built.
        TeacherError: The weights cannot be read or do not fit it, or it accepts no images.
    """
    published = find_published(config)
    read = _read_weights(config) if config.weights and published is None else None
    notes += _notes_on(read) if config.weights else ["weights: none given, so the network keeps its initial ones"]
    try:
        return _built_with(read.state if read else {}, config, published, hint, notes)
    except _MisfitError as error:
        if read is None:
            raise
        if isinstance(error, _OtherNamesError) and (whole := _built_with_parts(read, config, hint, notes)):
            return whole
        if contradiction := _contradiction(config, hint):
            raise TeacherError(f"The weights in {config.weights} {contradiction}") from error
        if read.others and not config.weights_key:
            choice = f"{read.key}, {', '.join(read.others)}"
            raise TeacherError(
                f"{error}. The file has several state dicts, {choice}: choose one with teacher.source.weights_key"
            ) from error
        raise


def _built_with(
    state: Mapping[str, Tensor],
    config: SourceConfig,
    published: PublishedWeights | None,
    hint: int,
    notes: list[str],
    *,
    is_union: bool = False,
) -> Classifier:
    """Build the network for the first shape that fits these weights; of a union, all must be used."""
    given = config.image_size or (published.image_size if published else 0) or size_argument(config)
    failures: list[TeacherError | ConfigError] = []
    for build in build_shapes(config, state, published.num_classes if published else 0):
        try:
            built = _build(config, published, state, build, sizes_to_try(given, hint))
        except (TeacherError, ConfigError) as error:
            failures.append(error)
            if isinstance(error, _OtherNamesError):
                break
            continue
        if is_union and (unused := unused_names(built.network, state)):
            raise _OtherNamesError(f"{config.model} has no {', '.join(unused[:3])}")
        if not given:
            notes.append(
                f"input size: {built.size} pixels assumed, the first that works. Set teacher.source.image_size"
            )
        if built.left_out:
            shown = ", ".join(built.left_out[:5]) + (", ..." if len(built.left_out) > 5 else "")
            notes.append(f"weights: left out, since the network has no such part: {shown}")
        shape = (built.channels, built.size)
        return describe_network(built.network, config.model, shape, config, notes, published=published, build=build)
    raise failures[0]


def _built_with_parts(read: FoundWeights, config: SourceConfig, hint: int, notes: list[str]) -> Classifier | None:
    """Return the network with weights that the file holds in several parts, None if they do not fit it exactly."""
    for union in read.unions:
        found: list[str] = []
        try:
            classifier = _built_with(rename(union, config.rename), config, None, hint, found, is_union=True)
        except (TeacherError, ConfigError):
            continue
        parts = ", ".join(sorted((read.key, *read.others)))
        notes[:] = [f"weights: {len(union)} tensors of several parts of the file: {parts}", *notes[1:], *found]
        return classifier
    return None


def _contradiction(config: SourceConfig, hint: int) -> str:
    """Return which settings the weights contradict and what they fit, for a message; empty if they contradict none."""
    for names in (("num_classes",), ("in_channels",), ("num_classes", "in_channels")):
        if not all(getattr(config, name) for name in names):
            continue
        left_open: dict[str, Any] = dict.fromkeys(names, 0)
        try:
            card = build_teacher(dataclasses.replace(config, **left_open), hint, []).card
        except DfkdError:
            continue
        fitting, given = (" and ".join(f"{name} {getattr(of, name)}" for name in names) for of in (card, config))
        return f"fit {config.model} with {fitting}, and teacher.source has {given}. Correct it, or leave it out"
    return ""


def _read_weights(config: SourceConfig) -> FoundWeights:
    path = Path(config.weights)
    if path.is_file() and (kind := program_kind(path)):
        raise TeacherError(f"{path} is a program ({kind}) with its network. Name it as --teacher, without --weights")
    read = read_state(path, key=config.weights_key, trust_pickle=config.trust_pickle)
    return dataclasses.replace(read, state=rename(read.state, config.rename))


def _notes_on(read: FoundWeights | None) -> Iterator[str]:
    if read is None:
        return
    others = f" (also there: {', '.join(read.others)}; choose with weights_key)" if read.others else ""
    yield f"weights: {len(read.state)} tensors{f' under {read.key!r}' if read.key else ''}{others}"
    if read.unread:
        yield f"weights: objects in the file that were not read: {', '.join(read.unread[:5])}"


class _MisfitError(TeacherError):
    """The weights do not fit the network."""


class _OtherNamesError(_MisfitError):
    """The weights have other names than the network's tensors, so that another shape cannot help."""


@dataclass(frozen=True, slots=True)
class _Built:
    """A network with its weights, and the shape of the images that it accepts."""

    network: nn.Module
    channels: int
    size: int
    left_out: tuple[str, ...]


def _build(
    config: SourceConfig,
    published: PublishedWeights | None,
    state: Mapping[str, Tensor],
    build: BuildShape,
    sizes: Sequence[int],
) -> _Built:
    """Build the network for the first size that it accepts with these weights.

    Raises:
        ConfigError: It cannot be built.
        TeacherError: The weights do not fit it, or it accepts none of the sizes.
    """
    arguments = {**config.arguments, **(published.arguments | published.kept if published else {})}
    depends_on_size = is_built_in(config.model) or "image_size" in shape_parameters(config.model)
    failures: list[TeacherError | ConfigError] = []
    network: nn.Module | None = None
    left_out: tuple[str, ...] = ()
    for position, size in enumerate(sizes):
        try:
            fresh = build_architecture(
                config.model,
                in_channels=build.in_channels,
                image_size=size,
                num_classes=build.num_classes,
                arguments=arguments,
            )
            left_out = _load_state(fresh, state, config) if state else ()
            network = fresh.eval()
            to_try = [size] if depends_on_size else sizes[position:]
            channels, size = fitting_shape(network, config, to_try, built_channels=build.in_channels)
        except (TeacherError, ConfigError) as error:
            is_same = bool(failures) and network is None and str(error) == str(failures[-1])
            failures.append(error)
            # The size does not matter if two sizes lead to the same differences.
            if is_same or (network is not None and not depends_on_size):
                break
            continue
        return _Built(network, channels, size, left_out)
    raise failures[0]


def has_random_weights(classifier: Classifier) -> bool:
    """Return whether the network that later stages rebuild from the card begins with other weights.

    Raises:
        TeacherError: Name, arguments and weights do not determine the network.
    """
    card = classifier.card
    rebuilt = build_classifier(card, seed=0).eval()
    images = probe_images(card.image_shape, 2)
    weights = classifier.network.state_dict()
    is_random = any(
        not torch.equal(tensor, weights[name])
        for name, tensor in rebuilt.network.state_dict().items()
        if name in weights
    )
    try:
        rebuilt.network.load_state_dict(weights)
        with torch.no_grad():
            fault = difference(rebuilt(images), classifier(images))
    except RuntimeError as error:
        fault = str(error).splitlines()[0].rstrip(".:")
    if fault:
        raise TeacherError(
            f"{card.network} builds another network when it is called again: {fault}. Its factory must depend on "
            "nothing but its arguments and the weights"
        )
    return is_random


def _load_state(network: nn.Module, state: Mapping[str, Tensor], config: SourceConfig) -> tuple[str, ...]:
    """Load the weights and return the names of those that the network does not need.

    Raises:
        TeacherError: They do not fit.
    """
    check_tensors(network)
    fitted = fit_weights(network, state)
    faults = state_faults(network, fitted.state)
    if not faults:
        network.load_state_dict(fitted.state)
        if differing := _overwritten(network, fitted.state):
            raise TeacherError(
                f"{config.model} has one tensor under several names, among them {differing[0]}, and {config.weights} "
                "holds different ones for them. Use the network that the weights were trained with"
            )
        return fitted.left_out
    kind = _OtherNamesError if network.state_dict().keys() != fitted.state.keys() else _MisfitError
    raise kind(
        f"The weights in {config.weights} do not fit {config.model}: {'; '.join(faults)}. Correct the "
        f"architecture, teacher.source.num_classes, arguments or weights_key{_remedy(network, state, config.weights)}"
    )


def _overwritten(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of loaded tensors whose values the network does not have: another name replaced them."""
    loaded = network.state_dict()
    return [name for name, tensor in state.items() if not torch.equal(loaded[name], tensor.to(loaded[name].dtype))]


def _remedy(network: nn.Module, state: Mapping[str, Tensor], weights: str) -> str:
    if _PART.search(weights):
        return ". The file is one of several: name their index, which ends in .index.json"
    if rules := renaming_for(network, state):
        drops = any(pattern.endswith(".*") for pattern in rules)
        why = "these tensors are not part of the network" if drops else "only the names differ"
        return f". If {why}: --set 'teacher.source.rename={json.dumps(rules)}'"
    return ""
