"""Loads an existing teacher: from a name, a file or a module to a checked `Classifier` and notes about it.

c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.common.digests import file_sha256, json_digest
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.architectures import (
    TIMM,
    TORCHVISION,
    architecture_fault,
    build_architecture,
    first_channels,
    last_units,
)
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier, describe, in_memory_format
from dfkd_core.models.factories import factory_file, look_here
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.outputs import OutputKind, find_output_key, find_output_kind, select_output, to_logits
from dfkd_core.models.programs import export_program, in_one_file, load_program, program_files, program_kind
from dfkd_core.models.storage import CONFIG_FILE, load_model
from dfkd_core.models.weights import fit_weights, read_plain_file, read_state, state_faults
from dfkd_core.teachers.preflight import check_teacher, probe_images, try_forward
from dfkd_core.teachers.published import PublishedWeights, find_published, usual_normalisation
from dfkd_core.teachers.source import SourceConfig

__all__ = ["BroughtTeacher", "bring_module", "bring_teacher", "source_digest", "source_files"]

_SIZES_PX = (32, 28, 64, 96, 128, 224, 256, 299, 384, 8, 16, 48, 160, 192, 512)
_REGISTRY = ("models:/", "runs:/")
_IN_MEMORY = "in memory"


@dataclass(frozen=True, slots=True)
class BroughtTeacher:
    """A teacher that passed its checks.

    Example:
        >>> from torch import nn
        >>> from dfkd_core import SourceConfig, bring_module
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        >>> loaded = bring_module(network, SourceConfig(in_channels=1, image_size=8))
        >>> loaded.notes[1:]
        ('answers with logits', 'modelled layer: 1:input')
    """

    classifier: Classifier
    """In eval mode on the CPU."""
    notes: tuple[str, ...]
    """Detected and assumed properties, one line each."""


def bring_teacher(
    config: SourceConfig,
    *,
    scratch: Path,
    layer: str = "",
    image_size_hint: int = 0,
    trusted_factories: Collection[str] = (),
) -> BroughtTeacher:
    """Load a trained network, detect the properties that are not given, and check that it can be a teacher.

    Args:
        config: The network's location and known properties; MLflow addresses must be replaced by local files.
        scratch: Folder that must exist as long as the classifier; a pickled module is exported into it.
        layer: Address of the modelled layer; empty detects it.
        image_size_hint: Size in pixels to try first if none is given, for example that of the data set.
        trusted_factories: If the network is a stored model: as in `load_model`.

    Raises:
        ConfigError: The architecture is unknown or cannot be built.
        TeacherError: A file is missing, corrupt, pickled or of another network, or the network cannot be a teacher.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dfkd_core import SourceConfig, bring_teacher
        >>> with TemporaryDirectory() as scratch:
        ...     loaded = bring_teacher(SourceConfig(model="lenet5", image_size=32), scratch=Path(scratch))
        >>> loaded.classifier.card.image_shape, loaded.classifier.card.layer
        ((1, 32, 32), 'fc1')
        >>> loaded.notes[0]
        'weights: none given, so the network keeps its initial ones'
    """
    path = Path(config.model)
    notes: list[str] = []
    if (path / CONFIG_FILE).is_file():
        return _checked(load_model(path, trusted_factories=trusted_factories), layer, notes)
    if (kind := program_kind(path) if path.is_file() else None) is not None:
        found = _bring_program(in_one_file(path, scratch), kind, config, image_size_hint, notes)
    elif path.suffix == ".safetensors":
        raise ConfigError(
            f"{path} holds weights and no network. Name the architecture as --teacher and the file as --weights"
        )
    elif path.suffix == ".py":
        raise ConfigError(f"teacher.source.model: {architecture_fault(config.model)}")
    elif path.is_file():
        found = _bring_pickle(path, config, scratch, image_size_hint, notes)
    elif fault := architecture_fault(config.model):
        raise ConfigError(f"teacher.source.model: {fault}, or an existing file or folder")
    else:
        found = _bring_architecture(config, image_size_hint, notes)
    brought = _checked(found, layer, notes)
    if found.program is None:
        _check_rebuilt(found)
    return brought


def bring_module(
    network: nn.Module, config: SourceConfig | None = None, *, layer: str = "", image_size_hint: int = 0
) -> BroughtTeacher:
    """Make a teacher of a network in memory: detect its properties and check it, as `bring_teacher` does.

    Args:
        network: The network; it is set to eval mode and frozen, and not changed otherwise.
        config: Its known properties; the fields of its location are ignored.
        layer: Address of the modelled layer; empty detects it.
        image_size_hint: Size in pixels to try first if none is given.

    Raises:
        TeacherError: The network cannot be a teacher.

    Example:
        >>> from torch import nn
        >>> from dfkd_core import SourceConfig, Teacher, bring_module
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> loaded = bring_module(network, SourceConfig(in_channels=1, image_size=8))
        >>> loaded.classifier.card.num_classes, loaded.classifier.card.layer
        (3, '3:input')
        >>> Teacher(loaded.classifier).num_features
        8
    """
    config = config or SourceConfig()
    notes: list[str] = []
    channels = config.in_channels or first_channels(network.state_dict()) or 0
    channels, size = _fitting_shape(network.eval(), channels, config.image_size, image_size_hint, notes)
    return _checked(_described(network, _IN_MEMORY, channels, size, config, notes), layer, notes)


def _checked(classifier: Classifier, layer: str, notes: list[str]) -> BroughtTeacher:
    """Freeze a classifier and check that it can be a teacher."""
    classifier.eval().requires_grad_(False)
    if layer:
        classifier.card = dataclasses.replace(classifier.card, layer=layer)
    card = classifier.card
    notes += check_teacher(classifier, probe_images(card.image_shape))
    notes.append(f"modelled layer: {card.layer}" + (" (the logits)" if card.layer == OUTPUT else ""))
    if card.layer == OUTPUT and not layer:
        notes.append("its layers are not accessible or none determines the output, so the logits are modelled instead")
    return BroughtTeacher(classifier, tuple(notes))


def source_digest(config: SourceConfig) -> str:
    """Return a SHA-256 over the files of the teacher, including the factory's module but not installed packages.

    Raises:
        ConfigError: The factory's module cannot be imported.
    """
    return json_digest({name: file_sha256(path) for name, path in source_files(config).items()})


def source_files(config: SourceConfig) -> dict[str, Path]:
    """Return the files that `source_digest` hashes, by the names under which it hashes them.

    Raises:
        ConfigError: The factory's module cannot be imported.
    """
    found: dict[str, Path] = {}
    for name, text in (("model", config.model), ("weights", config.weights)):
        path = Path(text)
        if text and path.is_file():
            found.update({f"{name}/{item.name}": item for item in program_files(path)})
        elif text and path.is_dir():
            found.update({f"{name}/{item.name}": item for item in sorted(path.iterdir()) if item.is_file()})
    if not config.model.startswith(_REGISTRY) and not Path(config.model).exists():
        file = factory_file(config.model)
        found.update({"factory": file} if file else {})
    return found


def _bring_program(path: Path, kind: Any, config: SourceConfig, hint: int, notes: list[str]) -> Classifier:
    program = load_program(path, kind)
    said = program.image_shape
    channels = config.in_channels or (said[0] if said and said[0] else 0)
    size = config.image_size or (said[1] if said and said[1] else 0)
    if said and said[1] != said[2]:
        raise TeacherError(f"{path} takes images of {said[1]}x{said[2]} pixels; dfkd makes square ones")
    channels, size = _fitting_shape(program.network, channels, size, hint, notes)
    return _described(program.network, kind, channels, size, config, notes, program=path)


def _bring_pickle(path: Path, config: SourceConfig, scratch: Path, hint: int, notes: list[str]) -> Classifier:
    if not config.trust_pickle:
        content = read_plain_file(path)
        what = "a state dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise TeacherError(
            f"{path} holds {what} and no network. Name the architecture as --teacher and the file as --weights"
        )
    look_here()
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"{path} needs the module {error.name!r}, which defines its class. Install its package, put it into the "
            "project's folder, or add its folder to PYTHONPATH"
        ) from None
    except Exception as error:  # unpickling runs code that can raise any exception
        raise TeacherError(f"{path} cannot be unpickled: {type(error).__name__}: {error}") from error
    if isinstance(loaded, Mapping):
        loaded = next((value for value in loaded.values() if isinstance(value, nn.Module)), loaded)
    if not isinstance(loaded, nn.Module):
        raise TeacherError(f"{path} holds a {type(loaded).__name__} and no network")
    network = loaded.float().eval()
    channels = config.in_channels or first_channels(network.state_dict()) or 0
    channels, size = _fitting_shape(network, channels, config.image_size, hint, notes)
    target = scratch / "exported.pt2"
    export_program(network, (channels, size, size), target)
    notes.append("the pickled module was unpickled once and exported as .pt2; later stages read that file")
    return _described(load_program(target, "pt2").network, "pt2", channels, size, config, notes, program=target)


def _bring_architecture(config: SourceConfig, hint: int, notes: list[str]) -> Classifier:
    name = config.model
    published = find_published(config)
    state: dict[str, Tensor] = {}
    if config.weights and published is None:
        read = read_state(Path(config.weights), key=config.weights_key)
        state = read.state
        others = f" (also there: {', '.join(read.others)}; choose with weights_key)" if read.others else ""
        notes.append(f"weights: {len(state)} tensors{f' under {read.key!r}' if read.key else ''}{others}")
    elif published is None:
        notes.append("weights: none given, so the network keeps its initial ones")
    outside = name.startswith((TORCHVISION, TIMM))
    channels = config.in_channels or first_channels(state) or (3 if outside else 0) or 1
    classes = config.num_classes or last_units(state) or (published.num_classes if published else 0)
    classes = classes or (1000 if outside else len(config.class_names) or 10)
    arguments = {**config.arguments, **(published.arguments | published.kept if published else {})}
    size_said = config.image_size or (published.image_size if published else 0)
    failures: list[TeacherError | ConfigError] = []
    for size in _sizes(size_said, hint):
        try:
            network = build_architecture(
                name, in_channels=channels, image_size=size, num_classes=classes, arguments=arguments
            )
            if state:
                _load_state(network, state, config)
            shape = (first_channels(network.state_dict()) or channels, size, size)
            try_forward(network.eval(), probe_images(shape, 2))
        except (TeacherError, ConfigError) as error:
            failures.append(error)
            continue
        if not size_said:
            notes.append(f"input size: {size} pixels assumed, the first that works. Set teacher.source.image_size")
        return _described(network.float(), name, shape[0], size, config, notes, published=published)
    raise failures[0]


def _check_rebuilt(classifier: Classifier) -> None:
    """Check that name, arguments and weights determine the network, since later stages rebuild it from them."""
    card = classifier.card
    rebuilt = build_classifier(card, seed=0).eval()
    images = probe_images(card.image_shape, 2)
    try:
        rebuilt.network.load_state_dict(classifier.network.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(rebuilt(images), classifier(images), rtol=1e-3, atol=1e-3)
    except (RuntimeError, AssertionError) as error:
        raise TeacherError(
            f"{card.network} builds another network when it is called again: {str(error).splitlines()[0]}. Its "
            "factory must depend on nothing but its arguments and the weights"
        ) from error


def _load_state(network: nn.Module, state: Mapping[str, Tensor], config: SourceConfig) -> None:
    fitted = fit_weights(network, state)
    if faults := state_faults(network, fitted):
        raise TeacherError(
            f"The weights in {config.weights} do not fit {config.model}: {'; '.join(faults)}. Correct the "
            "architecture, teacher.source.num_classes, arguments or weights_key"
        )
    network.load_state_dict(fitted)


def _fitting_shape(network: nn.Module, channels: int, size: int, hint: int, notes: list[str]) -> tuple[int, int]:
    """Return the first channels and size that the network accepts."""
    all_channels = [channels] if channels else [3, 1]
    failures = []
    for edge in _sizes(size, hint):
        for depth in all_channels:
            try:
                try_forward(network, probe_images((depth, edge, edge), 2))
            except TeacherError as error:
                failures.append(error)
                continue
            if not size or not channels:
                notes.append(
                    f"input: {depth}x{edge}x{edge} assumed, the first that works. Set teacher.source.in_channels and "
                    "image_size"
                )
            return depth, edge
    raise failures[0]


def _sizes(said: int, hint: int) -> list[int]:
    """Return the sizes in pixels to try: the given one, or else the hint followed by the usual ones."""
    return [said] if said else list(dict.fromkeys([hint, *_SIZES_PX] if hint else _SIZES_PX))


def _described(
    network: nn.Module,
    name: str,
    channels: int,
    size: int,
    config: SourceConfig,
    notes: list[str],
    *,
    program: Path | None = None,
    published: PublishedWeights | None = None,
) -> Classifier:
    """Return the network as a classifier with its given properties, and detect the others."""
    mean, std = _normalisation(config, channels, name, published, notes)
    images = probe_images((channels, size, size))
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    answer = try_forward(network, (images - shift) / scale)
    key = str(config.output_key) or find_output_key(answer)
    output = select_output(answer, key)
    found_kind = find_output_kind(output)
    kind: OutputKind = found_kind if config.outputs == "auto" else config.outputs
    notes.append(f"answers with {kind.replace('_', ' ')}" + (f" at {key!r}" if key else ""))
    classes = to_logits(output, kind).shape[1]
    if config.num_classes and config.num_classes != classes:
        raise TeacherError(
            f"The network has {classes} outputs and teacher.source.num_classes is {config.num_classes}. Correct it"
        )
    names = config.class_names or (published.class_names if published else ())
    card = ModelCard(
        network=name,
        in_channels=channels,
        image_size=size,
        num_classes=classes,
        mean=mean,
        std=std,
        layer=OUTPUT,
        class_names=names,
        arguments={**config.arguments, **(published.kept if published else {})},
        outputs=kind,
        output_key=key,
        program_sha256=file_sha256(program) if program else "",
    )
    classifier = Classifier(network.eval(), card, program=program)
    describe(classifier)
    return in_memory_format(classifier)


def _normalisation(
    config: SourceConfig, channels: int, name: str, published: PublishedWeights | None, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation in units of [0, 1]."""
    low, high = config.value_range
    if published and not config.mean and not config.std:
        return _per_channel(published.mean, channels), _per_channel(published.std, channels)
    if not config.mean and not config.std and config.value_range == (0.0, 1.0):
        usual = usual_normalisation(name)
        what = f"that of {name.partition(':')[0]} is used" if usual else "pixels are passed as they are, in [0, 1]"
        notes.append(
            f"normalisation: none given, so {what}. If the teacher was trained with another one, set "
            "teacher.source.mean and std"
        )
        if usual:
            return _per_channel(usual[0], channels), _per_channel(usual[1], channels)
    mean = _per_channel(config.mean or (0.0,), channels)
    std = _per_channel(config.std or (1.0,), channels)
    return tuple((m - low) / (high - low) for m in mean), tuple(s / (high - low) for s in std)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(float(value) for value in values)
    if len(values) == 1:
        return (float(values[0]),) * channels
    if channels == 1:
        return (sum(values) / len(values),)
    raise ConfigError(
        f"teacher.source.mean and std must have one value or one per channel, got {len(values)} for {channels} channels"
    )
