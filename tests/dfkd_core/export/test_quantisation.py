import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from dfkd_core.errors import ExportError
from dfkd_core.export import quantisation
from dfkd_core.export.forms import capture
from dfkd_core.export.quantisation import quantise_network
from dfkd_core.export.run import probe_images
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


def lived(network, images):
    """Give BatchNorm the statistics of the images, and every logit a mean of zero, so that every class is answered."""
    with torch.no_grad():
        network.train()
        for _ in range(10):
            network(images)
        network.eval()
        bias = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")][-1]
        bias.sub_(network(images).mean(0))
    return network


class PreActivation(nn.Module):
    """He et al., 2016: BatchNorm and ReLU before each convolution; the shortcut also reads what one returned."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)])
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, images):
        maps = self.stem(images)
        for block in range(2):
            inner = self.convs[2 * block](self.norms[2 * block](maps).relu())
            maps = maps + self.convs[2 * block + 1](self.norms[2 * block + 1](inner).relu())
        return self.head(self.norm(maps).relu().mean((2, 3)))


class Shared(nn.Module):
    """Convolutions and biases that are used twice, each time before another BatchNorm or before none."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.tied = nn.Conv2d(16, 16, 3, padding=1)
        self.tied.bias = self.conv.bias
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(3)])
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        maps = self.norms[0](self.conv(self.stem(images).relu())).relu()
        maps = self.norms[1](self.conv(maps)).relu() + self.conv(maps.flip(3))
        return self.head(self.norms[2](self.tied(maps)).relu().mean((2, 3)))


class Sequence(nn.Module):
    """BatchNorm over the second dimension of what a linear layer returns; its weight is also read as a table."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.narrow = nn.Linear(8, 8), nn.BatchNorm1d(24), nn.Linear(192, 8)
        self.other, self.head = nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, images):
        rows = self.norm(self.linear(images.flatten(1, 2))).relu()
        return self.head(self.other(self.narrow(rows.flatten(1))) + self.narrow.weight.mean(1))


class WritingIntoViews(nn.Module):
    """Changes maps through views of them, between two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.head = nn.Conv2d(16, 16, 3), nn.Linear(16, 10)

    def forward(self, images):
        maps = self.norm(self.first(images))
        maps.flatten(1).relu_()
        maps[:, :8] *= -2
        return self.head(self.second(maps).relu_().mean((2, 3)))


class StandardisedWeights(nn.Module):
    """Qiao et al., 2019: BatchNorm standardises a convolution's weights; another takes the batch's moments."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.gain = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Parameter(torch.rand(16))
        self.free, self.head = nn.BatchNorm2d(16, track_running_stats=False), nn.Linear(16, 10)

    def forward(self, images):
        rows = self.conv.weight.reshape(1, 16, -1)
        weight = functional.batch_norm(rows, None, None, weight=self.gain, training=True).reshape_as(self.conv.weight)
        maps = self.norm(functional.conv2d(images, weight, self.conv.bias)).relu()
        return self.head(self.free(maps).relu().mean((2, 3)))


def normed_weights():
    convs = [parametrizations.weight_norm(nn.Conv2d(3, 16, 3)), parametrizations.spectral_norm(nn.Conv2d(16, 16, 3))]
    norms = [nn.BatchNorm2d(16), nn.BatchNorm2d(16)]
    layers = [part for pair in zip(convs, norms, strict=True) for part in (*pair, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def transposed():
    layers = [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    "make", [PreActivation, Shared, Sequence, WritingIntoViews, StandardisedWeights, normed_weights, transposed]
)
def test_int8_differs_by_rounding_from_a_network_whose_batch_norms_cannot_all_be_folded(make):
    torch.manual_seed(0)
    images = probe_images((3, 8, 8)) / 255
    network = lived(make(), images)
    with torch.no_grad():
        expected, found = network(images), quantised(network, images)(images)
    assert (expected.argmax(1) == found.argmax(1)).double().mean() > 0.9
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_network_that_its_preparation_changes_is_refused_before_rounding(monkeypatch):
    def prepare(network, quantizer):
        prepared = prepare_pt2e(network, quantizer)
        name, weight = next(iter(prepared.named_parameters()))
        owner, _, leaf = name.rpartition(".")
        setattr(prepared.get_submodule(owner), leaf, nn.Parameter(1.1 * weight))
        return prepared

    monkeypatch.setattr(quantisation, "prepare_pt2e", prepare)
    with pytest.raises(ExportError, match=r"was changed before it was rounded.*Other calibration images do not help"):
        quantised(build_network("lenet5", in_channels=1, image_size=32, num_classes=10), torch.rand(8, 1, 32, 32))


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
