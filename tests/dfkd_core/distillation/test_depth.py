"""Shorter copies of networks: which blocks are left out, and what the others make up for."""

import threading
from typing import Any

import pytest
import torch
from torch import nn

from dfkd_core.common.seeding import derive_generator
from dfkd_core.common.vision import models
from dfkd_core.distillation.depth import find_rows, first_fitting, make_shorter
from dfkd_core.distillation.pruning import check_copy, prune_into
from dfkd_core.errors import DistillationError
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_core.models.teacher import Teacher


class Adds(nn.Module):
    """Adds a constant to its input."""

    def __init__(self, amount):
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(float(amount)))

    def forward(self, x):
        return x + self.amount


class Residual(nn.Module):
    def __init__(self, wide, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, out - wide

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))).relu()


class Net(nn.Module):
    """A residual network with two stages."""

    def __init__(self, first, second, width=8):
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, 1, 1)
        self.layer1 = nn.Sequential(*(Residual(width, width) for _ in range(first)))
        wide = 2 * width
        self.layer2 = nn.ModuleList([Residual(width, wide, 2), *(Residual(wide, wide) for _ in range(second - 1))])
        self.fc = nn.Linear(wide, 5)

    def forward(self, x):
        x = self.layer1(self.stem(x).relu())
        for block in self.layer2:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def always(own, block):
    return type(own) is type(block)


def names(row):
    return [name for name, _ in row.named_children()]


def drawn(network, seed=0):
    """Give a network drawn weights and BatchNorm layers that were in use."""
    generator = derive_generator(seed, "depth")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.normal_(0, fan**-0.5, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.0, generator=generator)
    return network.eval()


def make_teacher(network, size=16):
    card = ModelCard(
        network="tests:net",
        in_channels=2,
        image_size=size,
        num_classes=5,
        mean=(0.5, 0.5),
        std=(0.25, 0.25),
        layer="fc:input",
    )
    return Teacher(Classifier(network, card))


def make_images(count=200, size=16):
    return (torch.rand(count, 2, size, size, generator=derive_generator(0, "images")) * 255).byte()


def test_the_blocks_that_matter_least_are_left_out():
    network = nn.Sequential(nn.Sequential(*(Adds(amount) for amount in (3, -0.5, 2, 0.25, 1))))
    student = nn.Sequential(nn.Sequential(Adds(0), Adds(0)))
    images = torch.zeros(1, 1)

    short: Any = make_shorter(network, student, lambda net: net(images), always)

    # Without -0.5 and 0.25, the sum changes by 0.25; then 1 is the smallest.
    assert [block.amount.item() for block in short[0]] == [3, 2]
    assert names(short[0]) == ["0", "1"]
    assert len([*network[0].children()]) == 5


def test_changes_that_cancel_are_found():
    """0.5 alone would be the smallest; after it has gone, -0.5 brings the sum back."""
    network = nn.Sequential(nn.Sequential(*(Adds(amount) for amount in (4, 0.5, -0.6, 3))))
    student = nn.Sequential(nn.Sequential(Adds(0), Adds(0)))

    short: Any = make_shorter(network, student, lambda net: net(torch.zeros(1, 1)), always)

    assert [block.amount.item() for block in short[0]] == [4, 3]


def test_a_block_that_changes_the_shape_stays():
    network = nn.Sequential(nn.Sequential(Adds(1), nn.Flatten(), Adds(0)))
    student = nn.Sequential(nn.Sequential(nn.Flatten()))
    images = torch.zeros(2, 1, 3)

    short: Any = make_shorter(
        network, student, lambda net: net(images), lambda own, block: isinstance(block, nn.Flatten)
    )

    assert [type(block) for block in short[0]] == [nn.Flatten]


def test_no_choice_of_blocks_is_an_error():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)))
    student = nn.Sequential(nn.Sequential(nn.Linear(2, 4)))

    with pytest.raises(NotThinnableError, match="1 blocks in 0 and the teacher 2"):
        make_shorter(network, student, lambda net: net(torch.zeros(2, 2)), always)


def test_blocks_are_matched_in_their_order():
    a, b = nn.Linear(1, 1), nn.ReLU()
    assert first_fitting([a, b], [b, a, a, b], always) == [1, 3]
    assert first_fitting([a, b], [b, a], always) is None


def test_rows_are_found_where_the_student_has_fewer_blocks():
    assert find_rows(Net(3, 4), Net(3, 2)) == ["layer2"]
    assert find_rows(Net(3, 4), Net(2, 2)) == ["layer1", "layer2"]
    assert find_rows(Net(3, 4), Net(4, 5)) == []


def test_batch_norm_makes_up_for_the_moments():
    """Behind the gap, each BatchNorm layer's output has the moments that it had before."""
    network, student = drawn(Net(3, 3)), Net(2, 1)
    images = torch.rand(64, 2, 16, 16, generator=derive_generator(1, "images"))
    with torch.no_grad():
        short = make_shorter(network, student, lambda net: net(images), always)
        wanted: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for net, values in ((network, wanted), (short, found)):
            for name, module in net.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.register_forward_hook(
                        lambda m, given, out, name=name, values=values: values.update({name: (m.weight.sum(), out)})
                    )
            net(images)
    by_weight = {float(total): out for total, out in wanted.values()}
    assert len(found) == 6
    for total, output in found.values():
        before = by_weight[float(total)]
        torch.testing.assert_close(output.mean((0, 2, 3)), before.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(output.std((0, 2, 3)), before.std((0, 2, 3)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("width", [8, 4])
def test_a_student_with_fewer_blocks_starts_near_its_teacher(width):
    network = drawn(Net(4, 4))
    with torch.no_grad():
        # Half of the blocks change little.
        for block in (network.layer1[1], network.layer1[2], network.layer2[2], network.layer2[3]):
            block.bn2.weight.mul_(0.01)
            block.bn2.bias.zero_()
    teacher, student, images = make_teacher(network), drawn(Net(2, 2, width), 1), make_images()
    check_copy(teacher, student)

    prune_into(teacher, student, images)

    with torch.no_grad():
        wanted = teacher(images / 255)
        found = student(teacher.normalise(images / 255))
    error = (found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
    assert error < (0.01 if width == 8 else 0.7)


def test_a_transformer_with_fewer_layers_starts_as_a_copy():
    def make(layers):
        torch.manual_seed(0)
        return models.VisionTransformer(16, 8, layers, 2, 16, 32, num_classes=5).eval()

    class Two(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.stem, self.fc = nn.Conv2d(2, 3, 1), make(layers)

        def forward(self, x):
            return self.fc(self.stem(x))

    network, student = Two(4).eval(), Two(2).eval()
    with torch.no_grad():
        network.fc.heads.head.weight.normal_(generator=derive_generator(0, "head"))
        for name in ("encoder_layer_1", "encoder_layer_2"):
            layer = network.fc.encoder.layers.get_submodule(name)
            layer.self_attention.out_proj.weight.zero_()
            layer.mlp[3].weight.zero_()
            layer.self_attention.out_proj.bias.zero_()
            layer.mlp[3].bias.zero_()
    card = ModelCard(
        network="tests:net", in_channels=2, image_size=16, num_classes=5, mean=(0.5, 0.5), std=(0.25, 0.25),
        layer="fc.heads.head:input",
    )  # fmt: skip
    teacher, images = Teacher(Classifier(network, card)), make_images()

    prune_into(teacher, student, images)

    with torch.no_grad():
        torch.testing.assert_close(student(teacher.normalise(images / 255)), teacher(images / 255), atol=1e-4, rtol=0)


class Ends(Net):
    def forward(self, x):
        if len(self.layer1) < 3:
            raise SystemExit("three blocks")
        return super().forward(x)


class Locked(Net):
    def __init__(self, *blocks):
        super().__init__(*blocks)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("network", "fault"), [(Ends(3, 2), "no choice of them fits"), (Locked(3, 2), "cannot be copied: cannot pickle")]
)
def test_a_network_that_cannot_be_shorter_is_refused(network, fault):
    with pytest.raises(DistillationError, match=fault):
        check_copy(make_teacher(drawn(network)), Net(2, 2))


def test_a_student_with_more_blocks_is_refused():
    with pytest.raises(DistillationError, match=r"the teacher has no layer1\.2\.conv1"):
        prune_into(make_teacher(drawn(Net(2, 2))), Net(3, 2), make_images(20))


def test_the_error_names_a_row_that_fits_no_choice():
    student = Net(2, 2)
    student.layer2[1].conv1 = nn.Conv2d(16, 16, 5, padding=2)
    with pytest.raises(DistillationError, match="the 2 blocks of layer2 are no choice of the teacher's 3"):
        check_copy(make_teacher(drawn(Net(2, 3))), student)
