from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from dfkd_core.errors import ConfigError
from dfkd_core.models.built_in import build_network, default_layer, network_names

SMALLEST = {
    "lenet5": 32,
    "lenet5_half": 32,
    "lenet5_bn": 32,
    "lenet5_half_bn": 32,
    "alexnet": 15,
    "alexnet_half": 15,
    "resnet18": 8,
    "resnet18_half": 8,
    "resnet18_quarter": 8,
    "resnet18_eighth": 8,
    "resnet34": 8,
}


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# LeNet: the counts of the papers. ResNet: those of the common CIFAR variants. The others: summed by hand.
@pytest.mark.parametrize(
    ("name", "in_channels", "expected"),
    [
        ("lenet5", 1, 61_706),
        ("lenet5_half", 1, 35_820),
        ("lenet5_bn", 1, 61_706 + 2 * (6 + 16 + 120 + 84)),
        ("lenet5_half_bn", 1, 35_820 + 2 * (3 + 8 + 120 + 84)),
        ("alexnet", 3, 1_659_178),
        ("alexnet_half", 3, 417_434),
        ("resnet18", 3, 11_173_962),
        ("resnet34", 3, 21_282_122),
    ],
)
def test_number_of_parameters(name, in_channels, expected):
    network = build_network(name, in_channels=in_channels, image_size=32, num_classes=10)
    assert num_parameters(network) == expected


def test_thin_resnets_are_about_a_quarter_of_each_other():
    counts = [
        num_parameters(build_network(name, in_channels=3, image_size=32, num_classes=10))
        for name in ("resnet18", "resnet18_half", "resnet18_quarter", "resnet18_eighth")
    ]
    for wide, thin in pairwise(counts):
        assert 3.9 < wide / thin < 4.1


def test_every_network_is_covered_here():
    assert set(network_names()) == set(SMALLEST)


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("extra", [0, 3])
def test_other_channels_classes_and_sizes(name, extra):
    size = SMALLEST[name] + extra
    network = build_network(name, in_channels=2, image_size=size, num_classes=7).eval()
    images = torch.rand(2, 2, size, size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert network(images).shape == (2, 7)


@pytest.mark.parametrize("name", SMALLEST)
def test_smaller_images_are_refused_with_the_allowed_size(name):
    smallest = SMALLEST[name]
    with pytest.raises(ConfigError, match=f"{name} takes images of {smallest}x{smallest} pixels or more, got"):
        build_network(name, in_channels=1, image_size=smallest - 1, num_classes=10)


def test_lenet5_flattens_a_larger_map_into_fc1():
    network = build_network("lenet5", in_channels=1, image_size=40, num_classes=10)
    assert network.get_submodule("fc1").in_features == 120 * 3 * 3


@pytest.mark.parametrize(("name", "num_units"), [("lenet5", 84), ("alexnet", 256), ("alexnet_half", 128)])
def test_default_layer_is_the_last_hidden_linear_layer_before_its_activation(name, num_units):
    network = build_network(name, in_channels=1, image_size=32, num_classes=10)
    layer = default_layer(name)
    assert network.get_submodule(layer).out_features == num_units
    assert isinstance(network.get_submodule(f"act_{layer}"), nn.ReLU)


def test_default_layer_of_a_resnet_is_the_vector_that_enters_its_linear_layer():
    network = build_network("resnet18_quarter", in_channels=1, image_size=8, num_classes=10).eval()
    outputs = []
    network.get_submodule(default_layer("resnet18_quarter")).register_forward_hook(lambda m, a, o: outputs.append(o))
    logits = network(torch.rand(2, 1, 8, 8))
    torch.testing.assert_close(network.get_submodule("fc")(outputs[0].flatten(1)), logits)


def test_activations_leave_the_layer_before_them_as_it_was():
    for name in ("lenet5_bn", "alexnet", "resnet18_quarter"):
        network = build_network(name, in_channels=1, image_size=32, num_classes=10)
        assert not any(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))


def test_lenet5_forward_is_the_formula():
    network = build_network("lenet5", in_channels=1, image_size=32, num_classes=10)
    weights = network.state_dict()
    maps = images = torch.rand(2, 1, 32, 32)
    for conv in ("conv1", "conv2", "conv3"):
        maps = nn.functional.conv2d(maps, weights[f"{conv}.weight"], weights[f"{conv}.bias"]).relu()
        if conv != "conv3":
            maps = nn.functional.max_pool2d(maps, 2)
    hidden = (maps.flatten(1) @ weights["fc1.weight"].T + weights["fc1.bias"]).relu()
    torch.testing.assert_close(network(images), hidden @ weights["fc2.weight"].T + weights["fc2.bias"])


def test_projected_shortcut_is_added_before_the_last_activation():
    network = build_network("resnet18_eighth", in_channels=1, image_size=8, num_classes=10).eval()
    block = network.get_submodule("layer2.0")
    nn.init.zeros_(block.get_parameter("bn2.weight"))
    maps = torch.rand(1, 8, 6, 6)
    torch.testing.assert_close(block(maps), block.get_submodule("shortcut")(maps).relu())


@pytest.mark.parametrize("size", [8, 64])
def test_a_projection_with_few_channels_has_the_gradients_of_a_strided_convolution(size):
    # With a convolution that strides itself and 64 pixels oneDNN ends the process, or damages its memory unseen.
    network = build_network("resnet18_eighth", in_channels=1, image_size=8, num_classes=10)
    layer: Any = network.get_submodule("layer2.0.shortcut.0")
    layer.to(memory_format=torch.channels_last)
    maps = torch.randn(3, 8, size, size).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(3, 16, size // 2, size // 2)
    exact_maps, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (maps, layer.weight))
    expected = torch.nn.functional.conv2d(exact_maps, exact_weight, stride=2)
    found = layer(maps)
    torch.testing.assert_close(found, expected.float())
    gradients = torch.autograd.grad((found * weights).sum(), (maps, layer.weight))
    exact = torch.autograd.grad((expected * weights).sum(), (exact_maps, exact_weight))
    for gradient, wanted in zip(gradients, exact):
        torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-4)


def test_unknown_name_lists_the_known_ones():
    for function in (default_layer, lambda name: build_network(name, in_channels=1, image_size=32, num_classes=10)):
        with pytest.raises(ConfigError, match=r"No network 'lenet6'. Networks: lenet5, .*resnet34"):
            function("lenet6")


@pytest.mark.parametrize("numbers", [{"in_channels": 0, "num_classes": 10}, {"in_channels": 1, "num_classes": 0}])
def test_numbers_below_one_are_refused(numbers):
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        build_network("lenet5", image_size=32, **numbers)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_max_pool__gives_the_same_with_a_gradient_and_without(size, memory_format):
    maps = torch.randn(4, 3, *size).to(memory_format=memory_format)
    maps[0, 0, 0, 0] = torch.nan
    pool = build_network("lenet5", in_channels=1, image_size=32, num_classes=3).get_submodule("pool1")
    expected = torch.nn.functional.max_pool2d(maps, 2)
    assert torch.equal(pool(maps).nan_to_num(99), expected.nan_to_num(99))
    assert torch.equal(pool(maps.clone().requires_grad_()).nan_to_num(99), expected.nan_to_num(99))
    assert pool(maps).stride() == expected.stride()


@pytest.mark.parametrize("image_size", [32, 36])
def test_last_convolution__is_a_convolution_with_its_gradients(image_size):
    layer: Any = build_network("lenet5", in_channels=1, image_size=image_size, num_classes=3).conv3
    side = (image_size - 4) // 4 - 2
    maps = torch.randn(6, 16, side, side).to(memory_format=torch.channels_last).requires_grad_()
    found = layer(maps)
    expected = torch.nn.functional.conv2d(maps, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for parameter in (maps, layer.weight, layer.bias):
        gradients = [torch.autograd.grad((o * weights).sum(), parameter, retain_graph=True) for o in (found, expected)]
        torch.testing.assert_close(*gradients)
