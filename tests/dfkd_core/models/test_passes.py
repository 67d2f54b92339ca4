from typing import Any

import pytest
import torch
from torch import nn

from dfkd_core.common.memory import GIB, memory_at_hand
from dfkd_core.errors import SynthesisError
from dfkd_core.models import passes as micro_batches
from dfkd_core.models.built_in import default_layer
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.passes import PassCost, PassSizes, gibibytes, joined, measure_cost, peak_bytes
from dfkd_core.models.storage import model_digest

CPU = torch.device("cpu")
MIB = 2**20


def classifier(name="lenet5", image_size=32):
    card = ModelCard(
        network=name,
        in_channels=1,
        image_size=image_size,
        num_classes=10,
        mean=(0.3,),
        std=(0.3,),
        layer=default_layer(name),
    )
    return build_classifier(card, seed=0).eval().requires_grad_(False)


class Doubling(nn.Module):
    """Whose every pixel becomes 256 numbers at once, and 256 more that are gone before the end."""

    def forward(self, images):
        maps = images.flatten(1).repeat(1, 256)
        return (maps + 1).view(len(images), 256, -1).mean(2)[:, :2]


def doubling():
    card = ModelCard(network="x", in_channels=1, image_size=16, num_classes=2, mean=(0.0,), std=(1.0,), layer="x")
    return Classifier(Doubling(), card)


def test_peak__counts_what_lives_at_once_and_not_what_was_there():
    before = torch.ones(MIB)

    def work():
        first = before + 1
        first = first + 1
        return first.sum()

    # Two of 4 MiB at once, the third after the first is gone.
    assert peak_bytes(work, CPU) == pytest.approx(8 * MIB, abs=100)


def test_peak__sees_what_autograd_keeps():
    x = torch.ones(MIB, requires_grad=True)

    def work(chain):
        y = x
        for _ in range(chain):
            y = y.sin()
        return y.sum()

    # The inputs of all sines are kept for the backward pass, the first of which was there before.
    assert peak_bytes(lambda: work(5), CPU) == pytest.approx(5 * 4 * MIB, abs=100)
    assert peak_bytes(lambda: torch.no_grad()(work)(5), CPU) == pytest.approx(2 * 4 * MIB, abs=100)


def test_cost__is_the_line_through_two_measurements():
    assert measure_cost(lambda n: torch.ones(1000 + 10 * n).sum(), CPU) == PassCost(4004, 40)


@pytest.mark.parametrize(
    ("num_bytes", "expected"), [(99, 0), (100, 0), (110, 1), (129, 2), (149, 4), (180, 8), (1e6, 65536)]
)
def test_cost__the_most_images_are_a_power_of_two_that_fits(num_bytes, expected):
    cost = PassCost(100, 10)
    assert cost.most_images(num_bytes) == expected
    if expected:
        assert cost.of(expected) <= num_bytes < cost.of(2 * expected)


def test_sizes__are_measured_on_the_network_itself():
    cost = PassSizes(doubling(), memory=GIB).cost(with_gradient=False)
    # 1 KiB of pixels, normalised to as much, then 256 times that, twice.
    assert cost.per_image == pytest.approx(512 * 1024, rel=0.02)
    with_gradient = PassSizes(doubling(), memory=GIB).cost(with_gradient=True)
    assert with_gradient.per_image > cost.per_image


def test_sizes__what_fits_is_not_split_and_what_does_not_is_halved_until_it_does():
    sizes = PassSizes(doubling(), memory=4 * GIB)
    per_image = sizes.cost(with_gradient=False).per_image
    most = GIB // per_image
    assert sizes.images_per_pass(most - 10, with_gradient=False) == most - 10
    found = sizes.images_per_pass(10 * most, with_gradient=False)
    assert found == 2 ** (most.bit_length() - 1)
    assert sizes.images_per_pass(3, with_gradient=False) == 3


def test_sizes__a_whole_batch_with_gradients_may_take_more_than_its_parts():
    sizes = PassSizes(doubling(), memory=4 * GIB)
    cost = sizes.cost(with_gradient=True)
    whole = int(2.9 * GIB) // cost.per_image
    assert sizes.images_per_pass(whole, with_gradient=True) == whole
    parts = sizes.images_per_pass(2 * whole, with_gradient=True)
    assert GIB < cost.of(parts) <= 2 * GIB


def test_sizes__at_least_one_image_goes_through(monkeypatch):
    monkeypatch.setattr(micro_batches, "NEVER_SPLIT_BELOW", 0)
    assert PassSizes(doubling(), memory=1000).images_per_pass(8, with_gradient=True) == 1


@pytest.mark.parametrize("name", ["lenet5", "lenet5_bn", "lenet5_half"])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_sizes__default_batches_of_small_teachers_are_whole_on_any_machine(name, with_gradient):
    assert PassSizes(classifier(name), memory=0).images_per_pass(500, with_gradient=with_gradient) == 500


@pytest.mark.parametrize("name", ["alexnet", "resnet18_eighth", "resnet18_quarter", "resnet18_half", "resnet18"])
def test_sizes__default_batches_of_32_pixels_are_whole_with_4_gib_for_each_worker(name):
    sizes = PassSizes(classifier(name), memory=4 * GIB)
    assert sizes.images_per_pass(500, with_gradient=True) == sizes.images_per_pass(500, with_gradient=False) == 500


def test_sizes__measuring_leaves_the_network_and_the_generator_as_they_were():
    own, state = classifier("lenet5_bn"), torch.get_rng_state()
    before = model_digest(own)
    with torch.inference_mode():
        PassSizes(own, memory=GIB).cost(with_gradient=True)
    assert model_digest(own) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_sizes__without_a_given_memory_take_what_is_free():
    assert PassSizes(classifier()).memory == pytest.approx(memory_at_hand("cpu"), rel=0.5)


def test_split__gives_all_images_in_order(monkeypatch):
    monkeypatch.setattr(micro_batches, "NEVER_SPLIT_BELOW", 0)
    sizes = PassSizes(doubling(), memory=16 * MIB)
    images = torch.rand(21, 1, 16, 16)
    parts = sizes.split(images)
    assert [len(part) for part in parts] == [4] * 5 + [1]
    assert torch.equal(joined(list(parts)), images)
    assert joined([images]) is images


def test_a_batch_that_must_be_whole_is_refused_with_the_size_that_fits(monkeypatch):
    sizes = PassSizes(doubling(), memory=GIB)
    options: dict[str, Any] = {
        "with_gradient": False,
        "method": "inversion",
        "setting": "synthesis.batch_size",
        "error": SynthesisError,
    }
    fitting = 2 ** ((GIB * 3 // 4 // sizes.cost(with_gradient=False).per_image).bit_length() - 1)
    sizes.check_whole(fitting, **options)
    with pytest.raises(SynthesisError, match=rf"inversion needs .* 9999 images .*Set synthesis.batch_size: {fitting},"):
        sizes.check_whole(9999, **options)
    monkeypatch.setattr(micro_batches, "NEVER_SPLIT_BELOW", 0)
    with pytest.raises(SynthesisError, match="Not even 2 images fit"):
        PassSizes(doubling(), memory=MIB).check_whole(2, **options)


def test_bytes_in_messages():
    assert gibibytes(1.5 * GIB) == "1.50 GiB"


@pytest.mark.gpu
def test_a_gpu_is_asked_what_its_allocator_gave():
    peak = peak_bytes(lambda: torch.ones(MIB, device="cuda").add(1).sum(), torch.device("cuda"))
    assert 8 * MIB <= peak <= 9 * MIB
