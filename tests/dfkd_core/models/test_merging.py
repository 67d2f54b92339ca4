import warnings

import pytest
import torch
from torch import nn

from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.layers import recorded
from dfkd_core.models.merging import merge_batch_norm
from dfkd_core.models.teacher import Teacher


def card(network="net", layer="head"):
    return ModelCard(
        network=network, in_channels=3, image_size=32, num_classes=4, mean=(0.4,) * 3, std=(0.2,) * 3, layer=layer
    )


def with_lived_batch_norm(classifier):
    """Give BatchNorm statistics and parameters as training leaves them, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 5)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.3, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return classifier.eval()


def foreign(network, layer="head"):
    return with_lived_batch_norm(Classifier(network, card(layer=layer)))


def norms(classifier):
    return [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class Net(nn.Module):
    """A convolution, what is to be tried out, and a head."""

    def __init__(self, middle, use=lambda conv, middle, x: middle(conv(x)), conv=None):
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 6, 3)
        self.middle = middle
        self.head = nn.Linear(6, 4)
        self.use = use

    def forward(self, images):
        return self.head(self.use(self.conv, self.middle, images).mean((2, 3)))


def test_a_channel_of_one_number_is_merged_by_the_formula():
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    for tensor, value in zip(
        (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias),
        (3.0, 1.0, 0.5, 4.0, 10.0, -2.0),
        strict=True,
    ):
        assert tensor is not None
        nn.init.constant_(tensor, value)
    network = nn.Sequential(conv, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    one = ModelCard(network="net", in_channels=1, image_size=8, num_classes=1, mean=(0.0,), std=(1.0,), layer=":output")
    merged = merge_batch_norm(Classifier(network, one).eval()).network
    assert isinstance(merged, nn.Sequential)
    # (3 x + 1 - 0.5) / 2 * 10 - 2 = 15 x + 0.5
    assert merged.get_parameter("0.weight").item() == pytest.approx(15)
    assert merged.get_parameter("0.bias").item() == pytest.approx(0.5)
    assert isinstance(merged[1], nn.Identity)


@pytest.mark.parametrize("network", ["resnet18_quarter", "lenet5_bn"])
def test_outputs_and_gradients_stay_and_no_batch_norm_is_left(network):
    classifier = with_lived_batch_norm(build_classifier(card(network, layer=""), seed=0))
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    merged = merge_batch_norm(classifier)
    assert norms(classifier)
    assert not norms(merged)
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs = [model(images) for model in (classifier, merged)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(output.square().sum(), images)[0] for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())


def test_a_network_without_batch_norm_is_given_back():
    classifier = build_classifier(card("lenet5", layer=""), seed=0).eval()
    assert merge_batch_norm(classifier) is classifier
    teacher = Teacher(classifier)
    assert teacher.merged() is teacher


@pytest.mark.parametrize(
    "network",
    [
        Net(nn.BatchNorm2d(6, affine=False)),
        Net(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())),
        Net(nn.BatchNorm2d(6), conv=nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False, dilation=2)),
        Net(nn.BatchNorm2d(6), conv=nn.Conv2d(3, 6, 3, groups=3)),
        nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 4)),
    ],
    ids=["without scale", "inside a block", "strided", "grouped", "linear"],
)
def test_pairs_of_other_peoples_networks(network):
    classifier = foreign(network)
    merged = merge_batch_norm(classifier)
    assert len(norms(classifier)) == 1
    assert not norms(merged)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(merged(images), classifier(images), rtol=1e-4, atol=1e-4)


class Activated(nn.BatchNorm2d):
    """More than BatchNorm."""

    def forward(self, images):
        return super().forward(images).relu()


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


def hooked(module, hook, before=False):
    module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    return module


class Tapped(nn.Module):
    """Answers with what a hook has kept of its BatchNorm's output."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.norm.register_forward_hook(self.keep)

    def keep(self, module, arguments, output):
        self.kept = output.mean((2, 3))

    def forward(self, images):
        self.norm(self.conv(images))
        return self.head(self.kept)


def reading_the_weight(conv, norm, images):
    """Use a layer's weight without a call of the layer."""
    return norm(conv(images)) + nn.functional.conv2d(images, conv.weight)


@pytest.mark.parametrize(
    "network",
    [
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(conv(x).relu())),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(y := conv(x)) + y.tanh()),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(conv(x)) + conv(x.flip(3))),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(middle(conv(x)))),
        Net(Activated(6)),
        Net(nn.BatchNorm2d(6), conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))),
        Net(nn.GroupNorm(2, 6)),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(input=conv(x))),
        Net(nn.BatchNorm2d(6), conv=nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3))),
        Net(nn.BatchNorm2d(6), conv=old_weight_norm(nn.Conv2d(3, 6, 3))),
        Net(nn.BatchNorm2d(6), conv=nn.utils.spectral_norm(nn.Conv2d(3, 6, 3))),
        Net(nn.BatchNorm2d(6), conv=hooked(nn.Conv2d(3, 6, 3), lambda module, arguments, output: 2 * output)),
        Net(nn.BatchNorm2d(6), conv=hooked(nn.Conv2d(3, 6, 3), lambda module, arguments: (2 * arguments[0],), True)),
        Net(hooked(nn.BatchNorm2d(6), lambda module, arguments, output: output.relu())),
        Net(hooked(nn.BatchNorm2d(6), lambda module, arguments: (arguments[0].relu(),), True)),
        Tapped(),
        Net(nn.BatchNorm2d(6), use=reading_the_weight),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: 1e-4 * (middle(y := conv(x)) + y.tanh())),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(conv(x)) * middle.running_var.sum()),
        Net(nn.BatchNorm2d(6), use=lambda conv, middle, x: middle(conv(x).relu_())),
    ],
    ids=[
        "not next",
        "read twice",
        "layer runs twice",
        "norm runs twice",
        "subclass",
        "parametrized",
        "group norm",
        "by name",
        "spectral norm",
        "old weight norm",
        "old spectral norm",
        "hook on the layer",
        "hook before the layer",
        "hook on the norm",
        "hook before the norm",
        "hook that the network needs",
        "weight read elsewhere",
        "small logits",
        "statistics read elsewhere",
        "changed in place",
    ],
)
def test_what_cannot_be_merged_is_left_alone(network):
    classifier = foreign(network)
    assert merge_batch_norm(classifier) is classifier


def test_a_weight_that_two_layers_share_is_merged_into_one_of_them():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.two.weight, self.two.bias = self.one.weight, self.one.bias
            self.head = nn.Linear(3, 4)

        def forward(self, images):
            return self.head((self.two(images) + self.norm(self.one(images))).mean((2, 3)))

    classifier = foreign(Tied())
    merged = merge_batch_norm(classifier)
    assert not norms(merged)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(merged(images), classifier(images), rtol=1e-4, atol=1e-4)


def test_layers_that_are_asked_for_give_what_they_did():
    classifier = with_lived_batch_norm(build_classifier(card("resnet18_quarter", layer="pool"), seed=0))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    addresses = ["layer1.0.conv1", "layer2.0.bn1:input", "layer3", "pool"]
    with recorded(classifier, addresses) as before:
        classifier(images)
    for kept, num_norms in ((addresses, 2), (["layer3", "pool"], 0)):
        merged = merge_batch_norm(classifier, keep=kept)
        assert len(norms(merged)) == num_norms
        with recorded(merged, kept) as after:
            merged(images)
        for address in kept:
            torch.testing.assert_close(after[address], before[address], rtol=1e-4, atol=1e-4)


def test_a_container_whose_value_would_change_prevents_it():
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(6, 4))
    classifier = foreign(network, layer="4")
    assert merge_batch_norm(classifier, keep=["0"]) is classifier
    assert not norms(merge_batch_norm(classifier, keep=["4"]))


def test_a_merged_teacher_is_the_same_teacher():
    teacher = Teacher(with_lived_batch_norm(build_classifier(card("lenet5_bn", layer="fc1"), seed=0)))
    merged = teacher.merged()
    assert norms(teacher.classifier)
    assert len(norms(merged.classifier)) < len(norms(teacher.classifier))
    assert merged.digest == teacher.digest
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(merged.forward_with_features(images), teacher.forward_with_features(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    features = torch.randn(2, teacher.num_features)
    torch.testing.assert_close(merged.rest(features), teacher.rest(features), rtol=1e-4, atol=1e-4)
