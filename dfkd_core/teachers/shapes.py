"""The shape that a network takes: what the user set, and guesses for the rest, to be tried in order.

c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.architectures import TIMM, TORCHVISION, ShapeParameter, shape_parameters
from dfkd_core.models.built_in import is_built_in
from dfkd_core.models.layouts import ChannelsFirst
from dfkd_core.models.lazy_layers import has_lazy_layers
from dfkd_core.teachers.preflight import PassError, check_rows, check_tensors, probe_images, try_forward
from dfkd_core.teachers.source import SourceConfig

__all__ = ["BuildShape", "build_shapes", "fitting_shape", "size_argument", "sizes_to_try"]

_SIZES_PX = (32, 28, 64, 96, 128, 224, 256, 299, 384, 8, 16, 48, 160, 192, 512)
_USUAL_CHANNELS = (3, 1)
_MOST_CLASS_GUESSES = 6


@dataclass(frozen=True, slots=True)
class BuildShape:
    """Arguments for a network's function; 0 leaves one to the function's default."""

    in_channels: int
    num_classes: int


def build_shapes(config: SourceConfig, state: Mapping[str, Tensor], published_classes: int) -> Iterator[BuildShape]:
    """Yield shapes to build the network with, the most likely one first; settings of the user are not varied.

    Args:
        config: The source; its arguments count as settings.
        state: The weights, empty if there are none.
        published_classes: Classes of published weights, 0 for other weights.
    """
    name = config.model
    is_factory = not is_built_in(name) and not name.startswith((TORCHVISION, TIMM))
    kernel, units = _kernel_channels(state), _units(state)[:_MOST_CLASS_GUESSES]
    named = 0 if published_classes else len(config.class_names)
    takes = shape_parameters(name)
    if is_factory:
        all_channels = _guesses([kernel] if kernel else [], [3, 1], takes.get("in_channels"))
        all_classes = _guesses(units, [10], takes.get("num_classes"))
    else:
        all_channels = _different([kernel, *((1, 3) if is_built_in(name) else (3,))])
        all_classes = _different([*units, published_classes, 10 if is_built_in(name) else 1000])
    if named:
        all_classes = [named, *all_classes]
    channels = config.in_channels or _argument(config, takes.get("in_channels"))
    classes = config.num_classes or _argument(config, takes.get("num_classes"))
    for depth in [channels] if channels else all_channels:
        yield from (BuildShape(depth, count) for count in ([classes] if classes else all_classes))


def size_argument(config: SourceConfig) -> int:
    """Return the image size that the source's arguments set, 0 if they set none."""
    return _argument(config, shape_parameters(config.model).get("image_size"))


def _argument(config: SourceConfig, parameter: ShapeParameter | None) -> int:
    value: Any = config.arguments.get(parameter.name, 0) if parameter else 0
    return value if isinstance(value, int) else 0


def _guesses(read: Sequence[int], usual: Sequence[int], parameter: ShapeParameter | None) -> list[int]:
    """Return guesses for a factory's parameter: the likeliest number in the weights, the default, other numbers."""
    if parameter is None:
        return [read[0] if read else usual[-1]]
    default = [] if parameter.is_required else [0]
    return list(dict.fromkeys([*read[:1], *default, *read[1:], *usual]))


def _different(values: Sequence[int]) -> list[int]:
    return [value for value in dict.fromkeys(values) if value]


def _kernel_channels(state: Mapping[str, Tensor]) -> int:
    """Return the input channels of the first kernel in a state dict, 0 if there is none."""
    return next((tensor.shape[1] for tensor in state.values() if tensor.dim() == 4), 0)


def _units(state: Mapping[str, Tensor]) -> list[int]:
    """Return the units of the matrices and 1x1 kernels in a state dict, those of the last one first."""
    matrices = (tensor for tensor in reversed(list(state.values())) if tensor.dim() in (2, 4) and len(tensor))
    return list(dict.fromkeys(len(tensor) for tensor in matrices if tensor[0].numel() == tensor.shape[1]))


def sizes_to_try(given: int, hint: int) -> list[int]:
    """Return the sizes in pixels to try: the given one, or else the hint followed by the usual ones."""
    return [given] if given else list(dict.fromkeys([hint, *_SIZES_PX] if hint else _SIZES_PX))


def fitting_shape(
    network: nn.Module, config: SourceConfig, sizes: Sequence[int], *, built_channels: int = 0
) -> tuple[int, int]:
    """Return channels and size of the first images that the network maps to one row each.

    Args:
        network: In eval mode.
        config: Its `in_channels` are the only ones that are tried if they are set.
        sizes: Sizes in pixels to try.
        built_channels: Channels that the network was built for, 0 if unknown.

    Raises:
        TeacherError: There is none, and the message is that of the first shape; or its state is not made of tensors.
    """
    check_tensors(network)
    if has_lazy_layers(network) and not (config.in_channels and len(sizes) == 1):
        raise TeacherError(
            "The network has lazy layers, which take the shape of the first image. Set teacher.source.in_channels and "
            "image_size"
        )
    guesses = [*dict.fromkeys(filter(None, [_first_channels(network), built_channels, *_USUAL_CHANNELS]))]
    channels = [config.in_channels] if config.in_channels else guesses
    key, tried = str(config.output_key), [(depth, size) for size in sizes for depth in channels]
    found, failures = _first_fitting(network, tried, key)
    if found is not None:
        return found
    if not isinstance(failures[0], PassError):
        raise failures[0]
    if _first_fitting(ChannelsFirst(network), [(depth, sizes[0]) for depth in guesses], key)[0]:
        raise TeacherError(
            f"{failures[0]}. It works with images of (n, h, w, c), the channels last; a teacher takes (n, c, h, w). "
            "Begin its forward with images.permute(0, 2, 3, 1), or wrap it in a module that does"
        )
    if config.in_channels or config.image_size:
        others = [(depth, size) for size in sizes_to_try(0, sizes[0]) for depth in (*channels, *guesses)]
        other, more = _first_fitting(network, [shape for shape in dict.fromkeys(others) if shape not in tried], key)
        if other is not None:
            raise TeacherError(
                f"{failures[0]}. It works with {other[0]} channels and {other[1]} pixels. Correct "
                "teacher.source.in_channels and image_size"
            )
        failures += more
    # The same error for all sizes is not due to the size. Other channels fail at the first convolution.
    depth = failures[0].image_shape[0]
    causes = {item.cause for item in failures if isinstance(item, PassError) and item.image_shape[0] == depth}
    if len(causes) == 1:
        raise failures[0]
    raise TeacherError(
        f"{failures[0]}. Other usual shapes fail too. Set teacher.source.in_channels and image_size to its own"
    )


def _first_fitting(
    network: nn.Module, shapes: Sequence[tuple[int, int]], key: str
) -> tuple[tuple[int, int] | None, list[TeacherError]]:
    """Return the first channels and size that a network takes, None if there are none, and the failures before it."""
    failures: list[TeacherError] = []
    for depth, size in shapes:
        try:
            _check_shape(network, (depth, size, size), key)
        except TeacherError as error:
            failures.append(error)
        else:
            return (depth, size), failures
    return None, failures


def _check_shape(network: nn.Module, shape: tuple[int, int, int], key: str) -> None:
    images = probe_images(shape, 2)
    for count in (2, 1):
        check_rows(try_forward(network, images[:count]), images[:count], key)


def _first_channels(network: nn.Module) -> int:
    """Return the input channels of the first convolution, 0 if there is none."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), 0) or _kernel_channels(
        {name: tensor for name, tensor in network.state_dict().items() if not torch.nn.parameter.is_lazy(tensor)}
    )
