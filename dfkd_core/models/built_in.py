"""The built-in classifiers for teacher or student, for any number of channels, classes and any large enough image.

Every network is an `nn.Sequential` of named modules, so that the output of each step can be reached by name. An
activation is a separate module (`act_fc1`), so that a layer can be read before it (`fc1`) and after it. Inputs are
normalised images [n, c, h, w] with h = w, outputs are logits [n, k].

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd_core.errors import ConfigError

__all__ = ["build_network", "default_layer", "half_as_wide", "is_built_in", "network_names"]

_MAX_MULTIPLE = 64.0


def network_names() -> tuple[str, ...]:
    """Return the names that `build_network` accepts; each may be followed by a width multiple, as in `lenet5@0.5`."""
    return (*_NETWORKS, *_THINNER)


def is_built_in(name: str) -> bool:
    """Return whether `build_network` accepts a name, ignoring its width multiple."""
    return name.partition("@")[0] in network_names()


def default_layer(name: str) -> str:
    """Return the module path of the default modelled layer.

    It is the last hidden linear layer before its activation or, if the network has one linear layer, the pooled vector
    that is its input.

    Raises:
        ConfigError: The name is unknown.
    """
    entry, _ = _find(name)
    return entry.layer


def half_as_wide(name: str) -> str:
    """Return the name of the same network with half the widths; the name that papers use if there is one.

    Args:
        name: A built-in network, or any other with or without a width multiple, as `torchvision:resnet18`.
    """
    base, _, number = name.partition("@")
    if not number:
        papers = {thinner: alias for alias, thinner in _THINNER.items()}
        return papers.get((base, 0.5), f"{base}@0.5")
    return f"{base}@{float(number) / 2:g}"


def build_network(name: str, *, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Build a network with PyTorch's default initialisation, drawn from the global generator.

    A width multiple scales the same widths as `_half`: in LeNet-5 those of the first two convolutions (LeNet-5-Half of
    the papers), in AlexNet those of all hidden layers, in a ResNet all.

    Args:
        name: One of `network_names()`, or one with a width multiple: `lenet5@0.5` is `lenet5_half`.
        in_channels: Channels c of an input image.
        image_size: Height and width of an input image in pixels.
        num_classes: Number of logits k.

    Raises:
        ConfigError: The name is unknown, its width multiple is not a number above 0, the images are too small for the
            network, or a number is below 1.
    """
    entry, multiple = _find(name)
    for what, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if value < 1:
            raise ConfigError(f"{what} must be at least 1, got {value}")
    if image_size < entry.min_image_size:
        smallest = entry.min_image_size
        raise ConfigError(
            f"{name} takes images of {smallest}x{smallest} pixels or more, got {image_size}x{image_size}. "
            f"Set data.image_size to {smallest} or more"
        )
    return entry.build(in_channels, image_size, num_classes, multiple=multiple)


class _Conv2d(nn.Conv2d):
    """Convolution computed as a matrix product if its kernel covers the whole map, several times as fast on a CPU."""

    def forward(self, maps: Tensor) -> Tensor:
        if tuple(maps.shape[-2:]) != self.kernel_size:
            return super().forward(maps)
        # Positions before channels, the order of both in memory: neither is copied.
        weight, rows = (tensor.permute(0, 2, 3, 1).flatten(1) for tensor in (self.weight, maps))
        return functional.linear(rows, weight, self.bias)[:, :, None, None]


class _Shortcut(nn.Conv2d):
    """1x1 convolution that drops the skipped positions before it computes, not during the computation.

    On a CPU the gradient of a strided convolution with fewer than 16 channels, in channels-last layout, is written past
    its memory: https://github.com/uxlfoundation/oneDNN/issues/6035
    """

    def forward(self, maps: Tensor) -> Tensor:
        down, across = self.stride
        return functional.conv2d(maps[:, :, ::down, ::across], self.weight, self.bias)


class _MaxPool2x2(nn.MaxPool2d):
    """Pooling of 2x2 windows that is several times as fast for few channels if no gradient is needed."""

    def forward(self, maps: Tensor) -> Tensor:
        if torch.is_grad_enabled() and maps.requires_grad:
            pooled: Tensor = super().forward(maps)
            return pooled
        # The same numbers: a maximum has no rounding. Torch's own pooling also stores which of the four it was.
        height, width = (size // 2 * 2 for size in maps.shape[-2:])
        rows = torch.maximum(maps[..., :height:2, :], maps[..., 1:height:2, :])
        return torch.maximum(rows[..., :width:2], rows[..., 1:width:2])


def _lenet5(
    in_channels: int, image_size: int, num_classes: int, *, multiple: float, batch_norm: bool = False
) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling.

    At 32 pixels `conv3` has one output position; for larger images it has a map, which is flattened into `fc1`.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    fan_in = in_channels
    for position, width in enumerate((*_scaled((6, 16), multiple), 120), start=1):
        layers[f"conv{position}"] = _Conv2d(fan_in, width, 5)
        if batch_norm:
            layers[f"bn{position}"] = nn.BatchNorm2d(width)
        layers[f"act_conv{position}"] = nn.ReLU()
        if position < 3:
            layers[f"pool{position}"] = _MaxPool2x2(2)
        fan_in = width
    side = ((image_size - 4) // 2 - 4) // 2 - 4
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(120 * side**2, 84)
    if batch_norm:
        layers["bn_fc1"] = nn.BatchNorm1d(84)
    layers["act_fc1"] = nn.ReLU()
    layers["fc2"] = nn.Linear(84, num_classes)
    return nn.Sequential(layers)


def _alexnet(in_channels: int, image_size: int, num_classes: int, *, multiple: float) -> nn.Module:
    """AlexNet for small images as in ZSKD (Nayak et al., 2019, arXiv 1905.08114).

    BatchNorm follows the activation and the pooling, as in the paper. Its local response normalisation and dropout are
    left out: BatchNorm follows both, and dropout would draw from the global generator.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    fan_in, side = in_channels, image_size
    widths = _scaled((48, 128, 192, 192, 128), multiple)
    for position, (width, kernel) in enumerate(zip(widths, (5, 5, 3, 3, 3), strict=True), start=1):
        layers[f"conv{position}"] = nn.Conv2d(fan_in, width, kernel, padding="same")
        layers[f"act_conv{position}"] = nn.ReLU()
        if position in (1, 2, 5):
            layers[f"pool{position}"] = nn.MaxPool2d(3, stride=2)
            side = (side - 3) // 2 + 1
        layers[f"bn{position}"] = nn.BatchNorm2d(width)
        fan_in = width
    layers["flatten"] = nn.Flatten()
    fan_in *= side**2
    for position, width in enumerate(_scaled((512, 256), multiple), start=1):
        layers[f"fc{position}"] = nn.Linear(fan_in, width)
        layers[f"act_fc{position}"] = nn.ReLU()
        layers[f"bn_fc{position}"] = nn.BatchNorm1d(width)
        fan_in = width
    layers["fc3"] = nn.Linear(fan_in, num_classes)
    return nn.Sequential(layers)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected if the shape changes."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != width:
            self.shortcut = nn.Sequential(_Shortcut(fan_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        self.act2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(maps)))))
        output: Tensor = self.act2(residual + self.shortcut(maps))
        return output


def _resnet(
    in_channels: int, image_size: int, num_classes: int, *, depths: tuple[int, int, int, int], multiple: float
) -> nn.Module:
    """ResNet (He et al., 2016, arXiv 1512.03385) with the stem for small images: 3x3, stride 1, no pooling.

    The number of weights does not depend on `image_size`.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    (width,) = _scaled((64,), multiple)
    layers["conv1"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    layers["bn1"] = nn.BatchNorm2d(width)
    layers["act1"] = nn.ReLU()
    fan_in = width
    for stage, depth in enumerate(depths):
        stage_width = width * 2**stage
        blocks = [_BasicBlock(fan_in, stage_width, 1 if stage == 0 else 2)]
        blocks += [_BasicBlock(stage_width, stage_width, 1) for _ in range(depth - 1)]
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        fan_in = stage_width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(fan_in, num_classes)
    return nn.Sequential(layers)


def _scaled(widths: tuple[int, ...], multiple: float) -> tuple[int, ...]:
    """Return the widths times the multiple, at least 1 each."""
    return tuple(max(1, round(width * multiple)) for width in widths)


class _Build(Protocol):
    def __call__(self, in_channels: int, image_size: int, num_classes: int, *, multiple: float) -> nn.Module: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    build: _Build
    min_image_size: int
    """Smallest height and width at which every layer has at least one position."""
    layer: str
    """Default modelled layer."""


_lenet_entry = partial(_Entry, min_image_size=32, layer="fc1")
_resnet_entry = partial(_Entry, min_image_size=8, layer="pool")

_NETWORKS: dict[str, _Entry] = {
    "lenet5": _lenet_entry(build=_lenet5),
    "lenet5_bn": _lenet_entry(build=partial(_lenet5, batch_norm=True)),
    "alexnet": _Entry(build=_alexnet, min_image_size=15, layer="fc2"),
    "resnet18": _resnet_entry(build=partial(_resnet, depths=(2, 2, 2, 2))),
    "resnet34": _resnet_entry(build=partial(_resnet, depths=(3, 4, 6, 3))),
}
# Names that papers use for multiples of the widths.
_THINNER: dict[str, tuple[str, float]] = {
    "lenet5_half": ("lenet5", 0.5),
    "lenet5_half_bn": ("lenet5_bn", 0.5),
    "alexnet_half": ("alexnet", 0.5),
    "resnet18_half": ("resnet18", 0.5),
    "resnet18_quarter": ("resnet18", 0.25),
    "resnet18_eighth": ("resnet18", 0.125),
}


def _find(name: str) -> tuple[_Entry, float]:
    """Return the network and the multiple of its widths."""
    base, separator, number = name.partition("@")
    if base not in network_names():
        raise ConfigError(f"No network {base!r}. Networks: {', '.join(network_names())}")
    try:
        multiple = float(number) if separator else 1.0
    except ValueError:
        multiple = math.nan
    if not 0 < multiple <= _MAX_MULTIPLE:
        raise ConfigError(
            f"The width multiple of {name!r} must be a number above 0 and up to {_MAX_MULTIPLE:g}, got {number!r}. Use "
            f"for example {base}@0.5"
        )
    if base in _THINNER:
        base, thinner = _THINNER[base]
        multiple *= thinner
    return _NETWORKS[base], multiple
