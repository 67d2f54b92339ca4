"""A network that rejects images: the message is its own error, and blames the shape only if the shape is to blame."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd_core.errors import TeacherError
from dfkd_core.teachers.loading import bring_module
from dfkd_core.teachers.source import SourceConfig

BLAME = "in_channels and image_size"


class Plain(nn.Module):
    def __init__(self, size: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * size * size or 4, 5)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.conv(x))
        return self.fc(maps.flatten(1) if self.size else maps.mean((2, 3)))


class Wordless(Plain):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class AssertingInWords(Plain):
    def forward(self, x: Tensor) -> Tensor:
        assert self.fc.out_features == 6, "set_classes() was not called!"
        return super().forward(x)


class OnAnotherDevice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("Expected all tensors to be on the same device!")


class WrongTypes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + None  # type: ignore[operator]


class MissingKey(Plain):
    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Tensor] = {}
        return options["scale"] * super().forward(x)


class Leaving(Plain):
    def forward(self, x: Tensor) -> Tensor:
        sys.exit("no licence")


class LeavingWithMany(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return sys.exit(3) if len(x) > 2 else super().forward(x)


class ChannelsLast(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("network", "cause"),
    [
        (Wordless, r"NotImplementedError: raise NotImplementedError \(test_shapes\.py, line \d+\)"),
        (AssertingInWords, r"AssertionError: set_classes\(\) was not called"),
        (OnAnotherDevice, "on the same device$"),
        (WrongTypes, "TypeError: unsupported operand"),
        (MissingKey, "KeyError: 'scale'"),
        (Leaving, r"its code calls sys\.exit\('no licence'\), which ends the program"),
        (LeavingWithMany, r"its code calls sys\.exit\(3\), which ends the program"),
    ],
)
def test_an_error_that_is_not_about_the_shape__is_the_message(network: type[nn.Module], cause: str) -> None:
    for config in (SourceConfig(), SourceConfig(in_channels=3, image_size=16)):
        with pytest.raises(TeacherError, match=cause) as raised:
            bring_module(network(), config)
        assert BLAME not in str(raised.value)


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (16, {"image_size": 32}, rf"It works with 3 channels and 16 pixels\. Correct .*{BLAME}"),
        (0, {"in_channels": 1, "image_size": 32}, rf"It works with 3 channels and 32 pixels\. Correct .*{BLAME}"),
        (40, {}, rf"Other usual shapes fail too\. Set .*{BLAME}"),
        (40, {"image_size": 32}, rf"Other usual shapes fail too\. Set .*{BLAME}"),
    ],
)
def test_a_wrong_shape__is_named_with_one_that_works(size: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=rf"rejects float images of shape \(., 32, 32\): .*{message}"):
        bring_module(Plain(size), SourceConfig(**settings))


def test_the_error_of_torchscript__is_its_last_line() -> None:
    with pytest.raises(TeacherError, match="mat1 and mat2 shapes cannot be multiplied"):
        bring_module(torch.jit.script(Plain(40)))


def test_a_network_that_takes_channels_last__is_refused_by_that_name() -> None:
    with pytest.raises(TeacherError, match=r"works with images of \(n, h, w, c\), the channels last"):
        bring_module(ChannelsLast())


def test_a_network_without_data__is_named_as_such() -> None:
    with torch.device("meta"):
        network = Plain()
    with pytest.raises(TeacherError, match=r"conv\.weight is on the device meta, without data"):
        bring_module(network)
