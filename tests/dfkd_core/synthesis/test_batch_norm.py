import copy
import math

import pytest
import torch
from torch import nn

from dfkd_core.errors import TeacherError
from dfkd_core.synthesis.batch_norm import (
    batch_norm_distance,
    batch_norm_layers,
    normalising_by_batch,
    recording_distances,
)


def images(n, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def layer_with(mean, variance):
    layer = nn.BatchNorm1d(len(mean))
    layer.running_mean.copy_(torch.tensor(mean))
    layer.running_var.copy_(torch.tensor(variance))
    return layer


def test_distance__by_hand():
    # Channel means 2 and 1, biased variances 1 and 0.
    inputs = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    layer = layer_with([5.0, 5.0], [1.0, 2.0])
    assert batch_norm_distance(inputs, layer).item() == pytest.approx(math.hypot(3, 4) + 2, rel=1e-6)


def test_distance__agrees_with_a_loop_over_channels():
    inputs = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    layer = layer_with([0.1, -0.2, 0.3], [1.0, 2.0, 0.5])
    mean_gap = variance_gap = 0.0
    for channel in range(3):
        values = [inputs[n, channel, y, x].item() for n in range(5) for y in range(4) for x in range(2)]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        mean_gap += (mean - layer.running_mean[channel].item()) ** 2
        variance_gap += (variance - layer.running_var[channel].item()) ** 2
    expected = math.sqrt(mean_gap) + math.sqrt(variance_gap)
    assert batch_norm_distance(inputs, layer).item() == pytest.approx(expected, rel=1e-5)


def test_distance__is_zero_for_a_batch_with_the_layers_moments():
    assert batch_norm_distance(torch.tensor([[1.0], [3.0]]), layer_with([2.0], [1.0])).item() == pytest.approx(0)


def test_recorded_distances__are_of_the_layers_inputs_and_leave_no_hook(bn_teacher):
    layers, network = batch_norm_layers(bn_teacher, method="m"), bn_teacher.classifier.network
    batch = images(6)
    with recording_distances(layers) as distances:
        bn_teacher(batch)
    bn_teacher(batch)
    first = network.conv((batch - 0.5) / 0.2)
    second = network.fc1(network.flatten(network.pool(network.act(network.bn1(first)))))
    expected = [batch_norm_distance(first, network.bn1), batch_norm_distance(second, network.bn2)]
    torch.testing.assert_close(torch.stack(distances), torch.stack(expected))


def test_normalising_by_batch__gives_the_numbers_of_training_mode(bn_teacher):
    in_training = copy.deepcopy(bn_teacher.classifier).train()
    before = copy.deepcopy(bn_teacher.classifier.state_dict())
    with normalising_by_batch(batch_norm_layers(bn_teacher, method="m")):
        found = bn_teacher(images(7))
    torch.testing.assert_close(found, in_training(images(7)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bn_teacher.classifier.state_dict().items())
    assert not torch.allclose(bn_teacher(images(7)), found, atol=1e-2)


def test_normalising_by_batch__a_single_vector_gives_the_shift():
    layer = layer_with([5.0], [1.0]).eval()
    layer.bias.data.fill_(0.5)
    with normalising_by_batch((layer,)):
        assert layer(torch.tensor([[3.0]])).item() == 0.5


def test_layers__a_teacher_without_them_is_refused(teacher):
    with pytest.raises(
        TeacherError, match=r"inversion method.*'tiny' has no BatchNorm that keeps them.*lenet5_bn.*soft_target"
    ):
        batch_norm_layers(teacher, method="inversion")
