import pytest
import torch
from torch import nn

from dfkd_core.errors import ExportError
from dfkd_core.export.forms import capture
from dfkd_core.export.quantisation import quantise_network
from dfkd_core.models.built_in import build_network

OPERATORS = torch.ops.quantized_decomposed


def quantised(network, images):
    return quantise_network(capture(_Named(network.eval()), tuple(images.shape[1:])), [images])


class _Named(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)


def test_weights__are_steps_of_the_largest_one_of_their_channel_over_127():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    network[1].weight.data = torch.tensor([[1.27, -0.64, 0.006, 0.0], [-12.7, 3.0, 0.04, 6.35]])
    made = quantised(network, torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    (weight,) = (buffer for buffer in made.buffers() if buffer.dtype == torch.int8)
    assert weight.tolist() == [[127, -64, 1, 0], [-127, 30, 0, 64]]


def test_activations__are_256_steps_over_the_calibrated_range():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    network[1].weight.data = torch.eye(4)
    calibration = torch.linspace(-1, 3, 1024).view(256, 1, 2, 2)
    made = quantised(network, calibration)
    images = torch.tensor([[-1.0, 0.0, 1.2345, 3.0]]).view(1, 1, 2, 2)
    assert (made(images) - images.flatten(1)).abs().max() <= 4 / 255
    # What lies outside of the range is cut off.
    assert made(images * 0 + 9).max() < 3.1


@pytest.mark.parametrize(
    ("name", "channels", "layers"), [("lenet5_bn", 3, 5), ("alexnet_half", 1, 8), ("resnet18_eighth", 1, 21)]
)
def test_every_convolution_and_linear_layer_is_int8(name, channels, layers):
    network = build_network(name, in_channels=channels, image_size=32, num_classes=10)
    made = quantised(network, torch.rand(16, channels, 32, 32))
    tensors = dict(made.named_buffers()) | dict(made.named_parameters())
    assert sum(tensor.dtype == torch.int8 for tensor in tensors.values()) == layers
    assert max(tensor.squeeze().ndim for tensor in tensors.values() if tensor.is_floating_point()) == 1
    weights = [node for node in made.graph.nodes if node.target == OPERATORS.dequantize_per_channel.default]
    assert len(weights) == layers


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_that_cannot_be_folded_keeps_what_it_does(affine):
    norm = nn.BatchNorm2d(3, affine=affine)
    norm.running_mean, norm.running_var = torch.tensor([0.1, -2.0, 0.0]), torch.tensor([0.5, 4.0, 1.0])
    if affine:
        norm.weight.data, norm.bias.data = torch.tensor([1.0, -3.0, 0.2]), torch.tensor([0.0, 1.0, -1.0])
    last = nn.Conv2d(3, 3, 1)
    last.weight.data, last.bias.data = torch.eye(3)[:, :, None, None], torch.zeros(3)
    images = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = quantised(nn.Sequential(norm, last), images)
    expected = norm(images)
    step = (expected.max() - expected.min()) / 255
    assert (made(images) - expected).abs().max() < 2 * step


def test_the_captured_network_stays_as_it_is():
    network = build_network("lenet5_bn", in_channels=1, image_size=32, num_classes=10).eval()
    images = torch.rand(8, 1, 32, 32)
    program = capture(_Named(network), (1, 32, 32))
    before = program.module()(images)
    quantise_network(program, [images])
    assert torch.equal(program.module()(images), before)


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ExportError, match=r"no convolution and no linear layer to quantise.*without --int8"):
        quantised(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(8, 3, 8, 8))
