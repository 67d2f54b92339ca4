import copy
import dataclasses

import pytest
import torch
from torch import nn

from dfkd_core.common.compute import Compute
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import model_digest
from dfkd_core.models.teacher import Teacher
from dfkd_core.teachers.training import TeacherConfig, train_teacher
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.training.halves import add_gradients, both, is_divisible, twin_of

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Drawing(nn.Module):
    def forward(self, maps):
        return maps + 1e-9 * torch.rand(1)


class Counting(nn.Module):
    calls: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, maps):
        self.calls.add_(1)
        return maps


class Remembering(nn.Module):
    """Keeps numbers of a pass in an attribute of its own, a list, or none."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, maps):
        if isinstance(self.kept, list):
            self.kept.append(1)
        else:
            self.kept = self.kept + maps.detach().mean((0, 2, 3))[0] * 0
        return maps


class Holding(nn.Module):
    """Its copy still calls the layer of the original."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)
        self.body = lambda maps: self.layer(maps)

    def forward(self, maps):
        return self.body(maps)


class Hooked(nn.Module):
    """A hook, which its copy shares, stores the output of a layer in the original."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Identity(), None
        self.layer.register_forward_hook(lambda module, given, output: setattr(self, "seen", output))

    def forward(self, maps):
        self.layer(maps)
        return maps if self.seen is None else self.seen


class OfOneSize(nn.Module):
    def forward(self, maps):
        return maps.reshape(8, 4, 6, 6)


def network(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *more, nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.Identity(), True),
        (nn.BatchNorm2d(4).eval(), True),
        (nn.GroupNorm(2, 4), True),
        (nn.BatchNorm2d(4), False),
        (nn.Dropout(0.5), False),
        (Drawing(), False),
        (Counting(), False),
        (Remembering(0.0), False),
        (Remembering([]), False),
        (Remembering(torch.zeros(())), False),
        (Holding(), False),
        (Hooked(), False),
        (OfOneSize(), False),
    ],
)
def test_a_batch_is_divided_only_if_its_halves_have_the_same_outputs_alone(part, expected):
    made = network(part)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    state = torch.get_rng_state()
    assert is_divisible(made, IMAGES) == expected
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("name", ["lenet5", "lenet5_half"])
def test_batches_of_our_networks_without_batchnorm_are_divided(name):
    card = ModelCard(network=name, in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1")
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert is_divisible(build_classifier(card, seed=0).train(), images)


def test_fewer_than_four_images_are_not_divided():
    assert not is_divisible(network(), IMAGES[:3])


def test_the_gradients_of_both_halves_add_up_to_those_of_the_batch():
    made = network().double()
    whole, twin, images = copy.deepcopy(made), twin_of(made), IMAGES.double()
    whole(images).square().mean().backward()
    sums = both(
        lambda: (made(images[:5]).square().mean() * 5 / 8).backward(),
        lambda: (twin(images[5:]).square().mean() * 3 / 8).backward(),
        at_once=True,
    )
    add_gradients(made, twin)
    assert sums == (None, None)
    for one, other in zip(made.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert all(parameter.grad is None for parameter in twin.parameters())


def test_a_step_changes_the_twin_too():
    made = network()
    twin = twin_of(made)
    made(IMAGES).sum().backward()
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    assert all(torch.equal(one, other) for one, other in zip(made.parameters(), twin.parameters(), strict=True))


def test_an_error_in_the_second_half_is_raised():
    with pytest.raises(ZeroDivisionError):
        both(lambda: 1, lambda: 1 / 0, at_once=True)


CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1")


def grey(count):
    return torch.randint(0, 256, (count, 1, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


# The last batches have one image.
@pytest.mark.parametrize("num_images", [20, 21])
def test_a_teacher_is_the_same_on_one_and_on_two_cores(num_images):
    data = LabelledImages(grey(num_images), torch.arange(num_images) % 3, ("a", "b", "c"))
    config = TeacherConfig(epochs=2, batch_size=2, augmentation=AugmentationConfig(flip=True))
    made = [train_teacher(config, data, seed=0, prefetch=prefetch).classifier for prefetch in (0, 2)]
    assert model_digest(made[0]) == model_digest(made[1])


@pytest.mark.parametrize("network", ["lenet5", "lenet5_bn"])
@pytest.mark.parametrize("start", ["pruned", "random"])
def test_a_student_is_the_same_on_one_and_on_two_cores(network, start):
    teacher = Teacher(build_classifier(dataclasses.replace(CARD, network=network), seed=0))
    images = grey(24)
    config = DistillationConfig(student=f"{network}@0.5", start=start, epochs=2, batch_size=8)
    made = [
        distill_images(
            teacher, images, teacher.label(images / 255), config, seed=0, compute=Compute(prefetch=prefetch)
        ).student
        for prefetch in (0, 2)
    ]
    assert model_digest(made[0]) == model_digest(made[1])
