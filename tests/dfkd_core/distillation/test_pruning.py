import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from dfkd_core.common.memory import GIB
from dfkd_core.common.rows import ShardedRows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.pruning import prune_into
from dfkd_core.errors import ConfigError, DistillationError
from dfkd_core.models.architectures import build_architecture
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.models.thinning import make_thinner

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
CARD = ModelCard(
    network="lenet5", in_channels=2, image_size=32, num_classes=5, mean=(0.3, 0.5), std=(0.2, 0.3), layer="fc1"
)


def generator():
    return derive_generator(0, "test")


def make_teacher(network, seed=0):
    teacher = build_classifier(replace(CARD, network=network, layer=""), seed=seed)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.1, generator=generator())
                module.running_var.uniform_(0.5, 1.5, generator=generator())
                module.weight.uniform_(0.5, 1.5, generator=generator())
                module.bias.normal_(0, 0.1, generator=generator())
    return Teacher(build_classifier_like(teacher))


def build_classifier_like(classifier):
    layer = "pool" if classifier.card.network.startswith("resnet") else "fc2"
    classifier.card = replace(classifier.card, layer=layer)
    return classifier


def make_student(network, seed=1):
    return build_classifier(replace(CARD, network=network), seed=seed).eval()


def make_images(count=300, size=32):
    coarse = torch.rand(count, 2, 5, 5, generator=generator())
    return (nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") * 255).byte()


def answers(model, images):
    with torch.no_grad():
        return model(images / 255)


@pytest.mark.parametrize("network", ["lenet5", "lenet5_bn", "alexnet_half", "resnet18_eighth"])
def test_a_student_as_wide_as_the_teacher_becomes_the_teacher(network):
    teacher, student, images = make_teacher(network), make_student(network), make_images(40)
    prune_into(teacher, student.network, images)
    torch.testing.assert_close(answers(student, images), answers(teacher, images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wide", "thin"),
    [("lenet5", "lenet5_half"), ("lenet5_bn", "lenet5_half_bn"), ("resnet18_quarter", "resnet18_eighth")],
)
def test_a_thinner_student_is_far_nearer_to_the_teacher_than_random_weights(wide, thin):
    teacher, images = make_teacher(wide), make_images()
    drawn, pruned = make_student(thin), make_student(thin)
    prune_into(teacher, pruned.network, images[:200])
    wanted = answers(teacher, images[200:])
    spread = (wanted - wanted.mean(0)).square().mean()

    def error(model):
        return ((answers(model, images[200:]) - wanted).square().mean() / spread).item()

    assert error(pruned) < 0.3
    assert error(pruned) < 0.1 * error(drawn)


def test_channels_that_repeat_others_are_left_out_at_no_loss():
    teacher, student, images = make_teacher("lenet5"), make_student("lenet5_half"), make_images(60)
    network = teacher.classifier.network
    with torch.no_grad():
        for name, count in (("conv1", 3), ("conv2", 8)):
            layer = network.get_submodule(name)
            layer.weight[count:], layer.bias[count:] = layer.weight[:count].clone(), layer.bias[:count].clone()
    prune_into(teacher, student.network, images)
    difference = answers(student, images) - answers(teacher, images)
    assert difference.abs().max() < 0.02 * answers(teacher, images).std()


def test_it_depends_on_teacher_and_images_alone():
    teacher, images = make_teacher("lenet5"), make_images(50)
    first, second = make_student("lenet5_half", seed=1).train(), make_student("lenet5_half", seed=2)
    torch.manual_seed(0)
    prune_into(teacher, first.network, images)
    torch.manual_seed(1)
    prune_into(teacher, second.network, images)
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name
    assert first.network.training
    assert not second.network.training


@pytest.mark.parametrize(
    ("wide", "thin", "message"),
    [
        ("lenet5", "resnet18_eighth", "the student has no conv2"),
        ("lenet5_half", "lenet5", r"conv1.weight is \(6, 2, 5, 5\), larger than the teacher's \(3, 2, 5, 5\)"),
        ("lenet5_bn", "lenet5_half", "the student has no bn1"),
    ],
)
def test_a_student_that_is_no_thinner_copy_is_refused(wide, thin, message):
    with pytest.raises(DistillationError, match=rf"(?s){message}.*distillation.start: random"):
        prune_into(make_teacher(wide), make_student(thin).network, make_images(5))


class Mixing(nn.Module):
    """Calls a function whose channels are not followed."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, width, 3), nn.Linear(width, 5)

    def forward(self, images):
        maps = self.conv(images)
        return self.fc(torch.einsum("nchw,ndhw->nc", maps, maps))


def test_steps_that_cannot_be_followed_are_named():
    teacher = make_teacher("lenet5")
    teacher.classifier.network = Mixing(8)
    with pytest.raises(DistillationError, match="einsum"):
        prune_into(teacher, Mixing(4), make_images(5))


class EnoughSeenError(Exception):
    """More than one image was asked for."""


class CountedImages(ShardedRows):
    """Images that note how many of them are asked for, and give more than one to nobody."""

    def __init__(self, images):
        super().__init__([images])
        self.counts = []

    def __getitem__(self, index):
        rows = super().__getitem__(index)
        self.counts.append(len(rows))
        if len(rows) > 1:
            raise EnoughSeenError
        return rows


@pytest.mark.parametrize(("memory", "expected"), [(GIB * 8, 200), (0, 163)])
def test_of_large_maps_as_many_images_count_as_there_is_memory_for(memory, expected):
    card = replace(CARD, network="resnet18_eighth", image_size=160, layer="pool")
    teacher = Teacher(build_classifier(card, seed=0), memory=memory)
    images = CountedImages(make_images(220, size=160))
    with pytest.raises(EnoughSeenError):
        prune_into(teacher, build_classifier(card, seed=1).network, images)
    # The largest map has 8 x 160 x 160 values, 163 of them 2^25.
    assert images.counts[-1] == expected


def make_own_teacher(network, size=32):
    """Freeze a network of one's own for images of two channels."""
    card = replace(CARD, layer=":output", image_size=size, channels_last=False)
    return Teacher(Classifier(network, card))


def largest_difference(teacher, network, images):
    inputs = teacher.normalise(images / 255)
    with torch.no_grad():
        wanted, found = teacher.network(inputs), network.eval()(inputs)
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def unexplained(teacher, network, images):
    inputs = teacher.normalise(images / 255)
    with torch.no_grad():
        wanted, found = teacher.network(inputs), network.eval()(inputs)
    return ((found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()).item()


class Built(nn.Module):
    """A convolution and a head around a middle of many kinds."""

    def __init__(self, middle, width):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, width, 3, 2), nn.Linear(width, 5)
        self.middle = middle(width)

    def forward(self, images):
        return self.fc(self.middle(torch.relu(self.conv(images))).mean((2, 3)))


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised in its forward."""

    def forward(self, maps):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(maps, weight, self.bias)


class Twice(nn.Module):
    """The same weights, used twice; once by a function."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps):
        maps = torch.relu(self.conv(maps))
        return maps + nn.functional.conv2d(maps, self.conv.weight, padding=1)


def shared(width):
    first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def old_weight_norm(width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(width, width, 3))


KINDS = {
    "weight norm": (lambda width: parametrizations.weight_norm(nn.Conv2d(width, width, 3)), ""),
    "spectral norm": (
        lambda width: parametrizations.spectral_norm(nn.Conv2d(width, width, 3)), "cannot be set"
    ),
    "weight norm by a hook": (old_weight_norm, "a hook computes the weight"),
    "spectral norm by a hook": (
        lambda width: nn.utils.spectral_norm(nn.Conv2d(width, width, 3)), "hook computes the weight of .* in each pass"
    ),
    "standardised in its forward": (lambda width: Standardised(width, width, 3), "does not compute what a plain layer"),
    "used twice": (Twice, ""),
    "shared weights": (shared, ""),
    "grouped": (lambda width: nn.Conv2d(width, 2 * width, 3, groups=2), None),
    "depthwise, of two": (lambda width: nn.Sequential(nn.Conv2d(width, 2 * width, 3, groups=width), nn.ReLU()), None),
    "dilated, reflected": (
        lambda width: nn.Conv2d(width, width, 3, padding=2, dilation=2, padding_mode="reflect"), ""
    ),
    "LayerNorm": (lambda width: nn.Sequential(nn.GroupNorm(1, width), nn.PReLU(width)), ""),
    "InstanceNorm": (lambda width: nn.InstanceNorm2d(width, affine=True), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind__are_copied_right_or_refused(kind):
    middle, refusal = KINDS[kind]
    torch.manual_seed(0)
    wide, same, thin = Built(middle, 8), Built(middle, 8), Built(middle, 4)
    if refusal is None:
        # The width changes in the middle.
        wide.fc, same.fc, thin.fc = nn.Linear(16, 5), nn.Linear(16, 5), nn.Linear(8, 5)
    wide.eval()(torch.rand(4, 2, 32, 32))
    teacher, images = make_own_teacher(wide), make_images(60)
    prune_into(teacher, same, images)
    assert largest_difference(teacher, same, images) < 1e-3
    if refusal:
        with pytest.raises(DistillationError, match=refusal):
            prune_into(teacher, thin, images)
    else:
        prune_into(teacher, thin, images)
        assert unexplained(teacher, thin, images) < 0.7


@pytest.mark.parametrize(
    "name",
    ["Checked", "Looped", "Named", "PreActivated", "Squeezed", "ChannelNormed", "Shuffled", "Functional"],
)
def test_a_forward_of_every_kind__is_followed_and_made_thinner(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    card = replace(CARD, network=f"hand_written:{name}", in_channels=3, mean=(0.5,) * 3, std=(0.3,) * 3, layer="")
    teacher = Teacher(build_classifier(card, seed=0))
    coarse = torch.rand(60, 3, 5, 5, generator=generator())
    images = (nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear") * 255).byte()
    same = build_classifier(card, seed=1)
    prune_into(teacher, same.network, images)
    assert largest_difference(teacher, same.network, images) < 1e-3
    thin = build_classifier(replace(card, network=f"hand_written:{name}@0.5"), seed=1)
    prune_into(teacher, thin.network, images)
    assert unexplained(teacher, thin.network, images) < 0.7
    assert sum(p.numel() for p in thin.parameters()) < 0.6 * sum(p.numel() for p in teacher.network.parameters())


def test_networks_of_the_same_modules_that_compute_different_things__are_refused():
    class Other(Built):
        def forward(self, images):
            return -super().forward(images).square()

    teacher = make_own_teacher(Built(nn.InstanceNorm2d, 8))
    with pytest.raises(DistillationError, match=r"differs from it by .* so the two networks compute different things"):
        prune_into(teacher, Other(nn.InstanceNorm2d, 8), make_images(20))


class OwnWidth(nn.Module):
    """Knows its width as a number of its own."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, maps):
        return maps.view(-1, self.width, *maps.shape[2:])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OwnWidth, "its forward works with its own widths alone"),
        (lambda width: Standardised(width, width, 3), "does not compute what a plain layer"),
        (old_weight_norm, "are computed from others"),
        (Mixing, "einsum"),
    ],
)
def test_a_network_that_cannot_be_thinned__is_refused_with_the_reason(kind, reason):
    network = kind(8) if kind is Mixing else Built(kind, 8)
    with pytest.raises(NotThinnableError, match=reason):
        make_thinner(network, 0.5, (2, 32, 32))


@pytest.mark.parametrize("multiple", ["0", "1.5", "-1", "nan"])
def test_a_width_multiple_out_of_range__is_refused(multiple):
    with pytest.raises(ConfigError, match="must be a number above 0 and up to 1"):
        build_architecture(f"torchvision:resnet18@{multiple}", in_channels=3, image_size=32, num_classes=5)
