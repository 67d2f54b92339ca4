"""Loads an existing teacher: from a name, a file or a module to a checked `Classifier` and notes about it.

c channels, h height, w width, k classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.common.digests import file_sha256, json_digest
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.architectures import architecture_fault
from dfkd_core.models.classifier import Classifier, ModelCard, copy_network
from dfkd_core.models.factories import factory_file
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.pickles import attributes_of, more_than_tensors, read_plain_file, unpickle
from dfkd_core.models.programs import export_program, in_one_file, load_program, program_files, program_kind
from dfkd_core.models.storage import CONFIG_FILE, load_model
from dfkd_core.models.teacher import Teacher
from dfkd_core.models.weights import weight_files
from dfkd_core.teachers.building import build_teacher, has_random_weights
from dfkd_core.teachers.description import describe_network, given_normalisation
from dfkd_core.teachers.preflight import check_teacher, probe_images
from dfkd_core.teachers.shapes import fitting_shape, sizes_to_try
from dfkd_core.teachers.source import SourceConfig

__all__ = ["WARNING", "BroughtTeacher", "bring_module", "bring_teacher", "source_digest", "source_files"]

WARNING = "warning: "
"""Start of a note about something that is probably wrong."""

_REGISTRY = ("models:/", "runs:/")
_IN_MEMORY = "in memory"
_SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".torchscript", ".onnx", ".safetensors", ".ckpt", ".bin")
_NAME_BOTH = "Name the architecture as --teacher and the file as --weights"


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
    """Detected and assumed properties, one line each; those that begin with `warning: ` are probably mistakes."""


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
        ConfigError: An argument is wrong, or the architecture is unknown or cannot be built.
        TeacherError: A file is missing, corrupt, pickled or of another network, the network cannot be a teacher, or it
            contradicts a given property.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from dfkd_core import SourceConfig, bring_teacher
        >>> with TemporaryDirectory() as scratch:
        ...     loaded = bring_teacher(SourceConfig(model="lenet5", image_size=32), scratch=Path(scratch))
        >>> loaded.classifier.card.image_shape, loaded.classifier.card.layer
        ((1, 32, 32), 'fc1')
        >>> loaded.notes[0]
        'warning: no weights are given, and the network draws them at random, so it is untrained. Set --weights'
    """
    _check_arguments(config, layer, image_size_hint)
    if not isinstance(scratch, (str, Path)):
        raise ConfigError(f"scratch must be the path of a folder, got {scratch!r:.80}")
    if not config.model:
        raise ConfigError("teacher.source.model is empty. Set it to a name, a file or a folder, see docs/teachers.md")
    path, scratch = Path(config.model), Path(scratch)
    notes: list[str] = []
    if (path / CONFIG_FILE).is_file():
        _check_unused(config, path)
        classifier = load_model(path, trusted_factories=trusted_factories)
        _check_card(classifier.card, config, path)
        return _checked(classifier, layer, notes)
    if (kind := program_kind(path) if path.is_file() else None) is not None:
        _check_unused(config, path)
        return _checked(_bring_program(in_one_file(path, scratch), kind, config, image_size_hint, notes), layer, notes)
    if path.is_file() and path.name.endswith((".safetensors", ".index.json")):
        raise ConfigError(
            f"{path} holds weights and no network. Name the architecture as --teacher and the file as --weights"
        )
    if path.suffix == ".py":
        raise ConfigError(f"teacher.source.model: {architecture_fault(config.model)}")
    if path.is_file():
        _check_unused(config, path)
        return _checked(_bring_pickle(path, config, scratch, image_size_hint, notes), layer, notes)
    if fault := architecture_fault(config.model):
        raise ConfigError(_no_such_source(path, fault))
    classifier = build_teacher(config, image_size_hint, notes)
    brought = _checked(classifier, layer, notes)
    if has_random_weights(classifier) and not config.weights:
        warning = "no weights are given, and the network draws them at random, so it is untrained. Set --weights"
        brought = dataclasses.replace(brought, notes=(WARNING + warning, *brought.notes[1:]))
    return brought


def bring_module(
    network: nn.Module, config: SourceConfig | None = None, *, layer: str = "", image_size_hint: int = 0
) -> BroughtTeacher:
    """Make a teacher of a network in memory: detect its properties and check it, as `bring_teacher` does.

    Args:
        network: The network; it is set to eval mode and frozen, and not changed otherwise. If its weights are not
            float32, a copy in float32 is used.
        config: Its known properties; the fields of its location are ignored.
        layer: Address of the modelled layer; empty detects it.
        image_size_hint: Size in pixels to try first if none is given.

    Raises:
        ConfigError: An argument is wrong.
        TeacherError: The network cannot be a teacher, or it contradicts a given property.

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
    config = SourceConfig() if config is None else config
    _check_arguments(config, layer, image_size_hint)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"bring_module takes a torch.nn.Module, got {network!r:.80}. Load files and names with bring_teacher"
        )
    notes: list[str] = []
    network = _in_float32(network.eval(), notes)
    channels, size = _assumed(
        fitting_shape(network, config, sizes_to_try(config.image_size, image_size_hint)), config, notes
    )
    return _checked(describe_network(network, _IN_MEMORY, (channels, size), config, notes), layer, notes)


def _check_arguments(config: object, layer: object, hint: object) -> None:
    if not isinstance(config, SourceConfig):
        raise ConfigError(f"config must be a SourceConfig, got {config!r:.80}. Make one with: SourceConfig(model=...)")
    if not isinstance(layer, str):
        raise ConfigError(f"layer must be the address of a layer, for example 'fc:input', got {layer!r:.80}")
    if not isinstance(hint, int) or isinstance(hint, bool) or hint < 0:
        raise ConfigError(f"image_size_hint must be a number of pixels, 0 or more, got {hint!r:.80}")


def _check_unused(config: SourceConfig, path: Path) -> None:
    """Refuse settings that build a network or read weights if the teacher is a file or a folder with both."""
    names = ("weights", "weights_key", "rename", "arguments")
    if unused := [f"teacher.source.{name}" for name in names if getattr(config, name)]:
        raise ConfigError(f"{path} holds a network with its weights, so leave out {' and '.join(unused)}")


def _check_card(card: ModelCard, config: SourceConfig, path: Path) -> None:
    """Refuse settings that contradict a stored model."""
    mean, std = given_normalisation(config, card.in_channels)
    given = {
        "in_channels": config.in_channels,
        "image_size": config.image_size,
        "num_classes": config.num_classes,
        "outputs": "" if config.outputs == "auto" else config.outputs,
        "output_key": str(config.output_key),
        "class_names": tuple(config.class_names),
        "mean": () if config.mean == () else mean,
        "std": () if config.std == () else std,
    }
    for name, value in given.items():
        found = getattr(card, name)
        if value and value != found:
            raise TeacherError(
                f"teacher.source.{name} is {value!r}, and {path / CONFIG_FILE} has {found!r}. A stored model has its "
                "settings in this file: leave it out"
            )


def _no_such_source(path: Path, fault: str) -> str:
    """Return the message for a source that is neither a file, nor a stored model, nor the name of a network."""
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir())[:10]
        return (
            f"The folder {path} has no {CONFIG_FILE} of dfkd; it has: {', '.join(names) or 'nothing'}. Name the "
            "architecture as --teacher and the file or the folder of its weights as --weights"
        )
    if not path.exists() and (path.suffix in _SUFFIXES or "/" in str(path)):
        return f"There is no file or folder {path}. Correct teacher.source.model"
    return f"teacher.source.model: {fault}, or an existing file or folder"


def _checked(classifier: Classifier, layer: str, notes: list[str]) -> BroughtTeacher:
    """Freeze a classifier and check that it can be a teacher."""
    classifier.eval().requires_grad_(False)
    if layer:
        classifier.card = dataclasses.replace(classifier.card, layer=layer)
    card = classifier.card
    notes += check_teacher(classifier, probe_images(card.image_shape))
    # It runs the modelled layer and refuses one that a pass does not call.
    Teacher(classifier)
    notes.append(f"modelled layer: {card.layer}" + (" (the logits)" if card.layer == OUTPUT else ""))
    if card.layer == OUTPUT and not layer:
        notes.append("its layers are not accessible or none determines the output, so the logits are modelled instead")
    return BroughtTeacher(classifier, tuple(notes))


def source_digest(config: SourceConfig) -> str:
    """Return a SHA-256 over the files of the teacher, including the factory's module but not installed packages.

    Raises:
        ConfigError: The factory's module cannot be imported.
        TeacherError: A file cannot be read.
    """
    return json_digest({name: file_sha256(path) for name, path in source_files(config).items()})


def source_files(config: SourceConfig) -> dict[str, Path]:
    """Return the files that `source_digest` hashes, by the names under which it hashes them.

    Raises:
        ConfigError: The factory's module cannot be imported.
        TeacherError: A file cannot be read.
    """
    found: dict[str, Path] = {}
    for name, text, files in (("model", config.model, program_files), ("weights", config.weights, weight_files)):
        path = Path(text)
        if text and path.is_file():
            found.update({f"{name}/{item.name}": item for item in files(path)})
        elif text and path.is_dir():
            found.update({f"{name}/{item.name}": item for item in sorted(path.iterdir()) if item.is_file()})
    if not config.model.startswith(_REGISTRY) and not Path(config.model).exists():
        file = factory_file(config.model)
        found.update({"factory": file} if file else {})
    return found


def _bring_program(path: Path, kind: Any, config: SourceConfig, hint: int, notes: list[str]) -> Classifier:
    program = load_program(path, kind)
    channels, height, width = program.image_shape or (None, None, None)
    if height != width:
        raise TeacherError(f"{path} takes images of {height}x{width} pixels; dfkd makes square ones")
    for name, found in (("in_channels", channels), ("image_size", height)):
        given = getattr(config, name)
        if given and found and given != found:
            raise TeacherError(f"teacher.source.{name} is {given}, and {path} takes {found}. Leave it out")
    known = dataclasses.replace(
        config, in_channels=config.in_channels or channels or 0, image_size=config.image_size or height or 0
    )
    shape = fitting_shape(program.network, known, sizes_to_try(known.image_size, hint))
    return describe_network(program.network, kind, _assumed(shape, known, notes), config, notes, program=path)


def _bring_pickle(path: Path, config: SourceConfig, scratch: Path, hint: int, notes: list[str]) -> Classifier:
    if not config.trust_pickle:
        raise TeacherError(_untrusted(path))
    loaded = unpickle(path)
    if isinstance(loaded, Mapping):
        loaded = next((value for value in loaded.values() if isinstance(value, nn.Module)), loaded)
    if not isinstance(loaded, nn.Module):
        raise TeacherError(f"{path} holds a {type(loaded).__name__} and no network. {_NAME_BOTH}")
    network = loaded.float().eval()
    shape = fitting_shape(network, config, sizes_to_try(config.image_size, hint))
    channels, size = _assumed(shape, config, notes)
    target = scratch / "exported.pt2"
    export_program(network, (channels, size, size), target)
    notes.append("the pickled module was unpickled once and exported as .pt2; later stages read that file")
    exported = load_program(target, "pt2").network
    return describe_network(exported, "pt2", (channels, size), config, notes, program=target)


def _untrusted(path: Path) -> str:
    """Return the message for a file of torch.save that is named as a teacher and not trusted."""
    content = read_plain_file(path)
    parts = content.value.values() if isinstance(content.value, Mapping) else [content.value]
    if any(attributes_of(part) for part in (content.value, *parts)):
        return more_than_tensors(path, list(content.replaced))
    what = "a state dict" if isinstance(content.value, Mapping) else f"a {type(content.value).__name__}"
    return f"{path} holds {what} and no network. {_NAME_BOTH}"


def _assumed(shape: tuple[int, int], config: SourceConfig, notes: list[str]) -> tuple[int, int]:
    """Return the shape, and note it if it is a guess."""
    channels, size = shape
    if not config.image_size or not config.in_channels:
        notes.append(
            f"input: {channels}x{size}x{size} assumed, the first that works. Set teacher.source.in_channels and "
            "image_size"
        )
    return shape


def _in_float32(network: nn.Module, notes: list[str]) -> nn.Module:
    """Return the network, or a copy in float32 if it has weights in another precision."""
    found = {tensor.dtype for tensor in network.state_dict().values() if isinstance(tensor, Tensor)}
    others = [dtype for dtype in found if dtype.is_floating_point and dtype != torch.float32]
    if not others:
        return network
    notes.append(f"its weights are in {others[0]}; a copy in float32 is used".replace("torch.", ""))
    return copy_network(network).float()
