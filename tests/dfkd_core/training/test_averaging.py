import torch
from torch import nn

from dfkd_core.training.averaging import moving_average


def test_moving_average__is_the_recursion_with_a_warm_up():
    network = nn.Linear(1, 1, bias=False)
    average = moving_average(network, 0.5)
    values = [3.0, 5.0, -2.0, 4.0, 8.0, 1.0, 0.0, 7.0, 2.0, 6.0, 9.0, 1.0]
    expected = 0.0
    for step, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(average.module.weight.item(), expected)


def test_moving_average__covers_what_batch_norm_remembers():
    norm = nn.BatchNorm1d(1)
    average = moving_average(norm, 0.5)
    for level in (1.0, 2.0):
        norm(torch.tensor([[level], [level + 1]]))
        average.update_parameters(norm)
    first = 0.1 * 1.5
    second = 0.9 * first + 0.1 * 2.5
    torch.testing.assert_close(average.module.running_mean.item(), 2 / 11 * first + 9 / 11 * second)
    assert average.module.num_batches_tracked == 2
