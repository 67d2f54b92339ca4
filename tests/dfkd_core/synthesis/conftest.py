from collections import OrderedDict

import pytest
import torch
from torch import nn

from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.statistics.features import FeatureStatistics


class TinyNetwork(nn.Module):
    """6 features and 3 classes from images of 1x8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc1 = nn.Linear(4 * 4, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.adaptive_avg_pool2d(self.conv(images).tanh(), 2)
        return self.fc2(self.fc1(maps.flatten(1)).relu())


@pytest.fixture
def teacher() -> Teacher:
    card = ModelCard(
        network="tiny", in_channels=1, image_size=8, num_classes=3, mean=(0.5,), std=(0.2,), layer="fc1", class_names=()
    )
    network = TinyNetwork()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        network.fc2.bias.zero_()
    return Teacher(Classifier(network, card))


@pytest.fixture
def bn_teacher() -> Teacher:
    """A teacher with BatchNorm after a convolution and after a linear layer, which remember smooth images."""
    card = ModelCard(
        network="tiny_bn", in_channels=1, image_size=8, num_classes=3, mean=(0.5,), std=(0.2,), layer="bn2"
    )
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3, padding=1),
            bn1=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16, 6),
            bn2=nn.BatchNorm1d(6),
            fc2=nn.Linear(6, 3),
        )
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        network.get_parameter("fc2.bias").zero_()
        coarse = torch.rand(300, 1, 3, 3, generator=generator)
        for norm in (network.get_submodule("bn1"), network.get_submodule("bn2")):
            norm.momentum = 1.0  # type: ignore[assignment]  # a number, no module
        network.train()(nn.functional.interpolate(4 * coarse - 2, size=8, mode="bilinear"))
    return Teacher(Classifier(network, card))


@pytest.fixture
def statistics(teacher: Teacher) -> FeatureStatistics:
    return estimate_statistics(teacher, StatisticsConfig(), seed=0)
