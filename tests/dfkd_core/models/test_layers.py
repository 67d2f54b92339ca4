import dataclasses
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.layers import OUTPUT, find_modelled_layer, layer_candidates, recorded, replaced
from dfkd_core.models.teacher import Teacher

CARD = ModelCard(network="test", in_channels=1, image_size=8, num_classes=3, mean=(0.5,), std=(0.5,), layer=OUTPUT)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        return self.head(torch.tanh(self.hidden(self.conv(images).mean((2, 3)))))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


def classifier(network):
    return Classifier(network.eval(), CARD)


IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_modelled_layer_is_what_the_last_linear_layer_reads():
    assert find_modelled_layer(classifier(TwoHeads()), IMAGES) == "head:input"


def test_where_no_vector_determines_the_output_the_logits_are_modelled():
    assert find_modelled_layer(classifier(Convolutional()), IMAGES) == OUTPUT


def test_candidates_come_in_the_order_in_which_they_run_with_shape_and_kind():
    found = [(c.address, c.kind, c.shape, not c.note) for c in layer_candidates(classifier(TwoHeads()), IMAGES)]
    assert found == [
        ("conv:input", "Conv2d", (1, 8, 8), False),
        ("conv", "Conv2d", (4, 6, 6), False),
        ("hidden:input", "Linear", (4,), True),
        ("hidden", "Linear", (6,), True),
        ("head:input", "Linear", (6,), True),
        ("head", "Linear", (3,), True),
        (OUTPUT, "logits", (3,), True),
    ]


def test_another_threads_pass_through_the_network_is_not_seen():
    network, others = classifier(TwoHeads()), torch.zeros(5, 1, 8, 8)
    expected = network(others)
    with ThreadPoolExecutor(1) as pool, recorded(network, ["hidden", "head:input"]) as found:
        with replaced(network, "conv", torch.zeros(5, 4, 6, 6)):
            torch.testing.assert_close(pool.submit(network, others).result(), expected)
        network(IMAGES)
        pool.submit(network, others).result()
    assert [len(value) for value in found.values()] == [2, 2]


def test_what_a_layer_reads_and_gives_is_recorded_and_can_be_replaced():
    model = classifier(TwoHeads())
    with torch.no_grad(), recorded(model, ["head:input", "head", OUTPUT]) as found:
        logits = model(IMAGES)
    torch.testing.assert_close(model.network.head(found["head:input"]), logits)
    assert torch.equal(found["head"], logits)
    assert torch.equal(found[OUTPUT], logits)
    features = torch.rand(5, 6)
    with torch.no_grad(), replaced(model, "head:input", features):
        torch.testing.assert_close(model(IMAGES[:1]), model.network.head(features))
    assert len(model(IMAGES)) == 2, "hooks are gone after the block"


def test_a_layer_that_does_not_exist_lists_those_that_do():
    with pytest.raises(TeacherError, match=r"No layer 'nope'.*conv, hidden, head.*dfkd layers"):
        with recorded(classifier(TwoHeads()), ["nope:input"]):
            pass


def test_a_compiled_program_lets_nothing_be_looked_at_but_its_logits():
    program = torch.jit.script(TwoHeads().eval())
    model = Classifier(program, CARD)
    assert find_modelled_layer(model, IMAGES) == OUTPUT
    assert [c.address for c in layer_candidates(model, IMAGES)] == [OUTPUT]
    with pytest.raises(TeacherError, match=r"compiled program.*':output'"):
        with recorded(model, ["head:input"]):
            pass


def pooled(maps):
    return maps.mean((2, 3))


class Headed(nn.Module):
    """A convolution, two linear layers, and what is made of them."""

    def __init__(self, answer, wrap=lambda layer: layer):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.first, self.second = wrap(nn.Linear(4, 3)), nn.Linear(4, 3)
        self.drop = nn.Dropout(0.9)
        self.answer = answer

    def forward(self, images):
        return self.answer(self, self.conv(images).tanh())


def headed(answer, layer=OUTPUT, **options):
    torch.manual_seed(0)
    card = dataclasses.replace(CARD, layer=layer)
    return Classifier(Headed(answer, **options).eval(), card)


def with_auxiliary(net, maps):
    logits = net.first(pooled(maps))
    net.second(maps.amax((2, 3)))
    return logits


ONE_PATH = {
    "plain": lambda net, maps: net.first(pooled(maps)),
    "scaled and shifted": lambda net, maps: 3 * net.first(pooled(maps)) + 1,
    "dropout before and after": lambda net, maps: net.drop(net.first(net.drop(pooled(maps)))),
    "an auxiliary classifier that runs last": with_auxiliary,
}
SEVERAL_PATHS = {
    "averaged heads of two vectors": lambda net, maps: (net.second(maps.amax((2, 3))) + net.first(pooled(maps))) / 2,
    "averaged heads of one vector": lambda net, maps: (net.second(pooled(maps)) + net.first(pooled(maps))) / 2,
    "a head that is called twice": lambda net, maps: net.first(maps.amax((2, 3))) + net.first(pooled(maps)),
    "a shortcut around the head": lambda net, maps: net.first(pooled(maps)) + 0.1 * maps.amax((2, 3))[:, :3],
    "a scale from the image": lambda net, maps: net.first(pooled(maps)) * maps.amax((1, 2, 3))[:, None],
    "as many rows as images": lambda net, maps: net.first(pooled(maps)).view(len(maps), -1),
}
SEVERAL_IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_rest_is_the_teacher(teacher):
    for count in (1, 2, 5):
        with torch.no_grad():
            logits, features = teacher.forward_with_features(SEVERAL_IMAGES[:count])
        torch.testing.assert_close(teacher.rest(features), logits)


@pytest.mark.parametrize("answer", ONE_PATH.values(), ids=ONE_PATH)
def test_a_head_with_one_path_to_the_logits_is_modelled(answer):
    model = headed(answer)
    layer = find_modelled_layer(model, IMAGES)
    assert layer == "first:input"
    assert_rest_is_the_teacher(Teacher(headed(answer, layer)))


@pytest.mark.parametrize("answer", SEVERAL_PATHS.values(), ids=SEVERAL_PATHS)
def test_where_the_logits_depend_on_more_than_one_layer_they_are_modelled(answer):
    assert find_modelled_layer(headed(answer), IMAGES) == OUTPUT
    assert_rest_is_the_teacher(Teacher(headed(answer)))
    with pytest.raises(TeacherError, match=r"'first:input' does not determine the logits: .*teacher\.layer=:output"):
        Teacher(headed(answer, "first:input"))
    notes = {candidate.address: candidate.note for candidate in layer_candidates(headed(answer), SEVERAL_IMAGES)}
    assert "depend on more than this layer" in notes["first:input"]
    assert notes[OUTPUT] == ""


def test_a_refused_layer_is_reported_with_the_networks_logit_and_its_own():
    answer = SEVERAL_PATHS["averaged heads of two vectors"]
    with pytest.raises(TeacherError, match=r"has the logit (-?[\d.]+), and its features lead to (-?[\d.]+)") as caught:
        Teacher(headed(answer, "first:input"))
    numbers = re.findall(r"-?\d+\.\d+", str(caught.value))
    assert len(set(numbers)) == 2


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal, old_weight_norm,
     nn.utils.spectral_norm],
    ids=["weight norm", "spectral norm", "orthogonal", "old weight norm", "old spectral norm"],
)  # fmt: skip
@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_linear_layer_whose_weight_is_computed_is_a_linear_layer(wrap, num_classes):
    head: Any = wrap(nn.Linear(4, num_classes))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), head)
    card = dataclasses.replace(CARD, num_classes=num_classes, layer="3:input")
    model = Classifier(network.eval(), card)
    assert find_modelled_layer(model, IMAGES) == "3:input"
    addresses = [candidate.address for candidate in layer_candidates(model, IMAGES)]
    assert addresses == ["0", "1:input", "1", "2", "3:input", "3", OUTPUT]
    teacher = Teacher(model)
    assert_rest_is_the_teacher(teacher)
    torch.testing.assert_close(teacher.layer_weights("outgoing"), head.weight.detach().T)


def test_timms_network_with_two_heads_is_modelled_at_its_logits():
    card = dataclasses.replace(
        CARD, network="timm:deit_tiny_distilled_patch16_224", image_size=32, num_classes=10, layer=""
    )
    model = build_classifier(card, seed=0)
    assert model.card.layer == OUTPUT
    model.card = dataclasses.replace(model.card, layer="head_dist:input")
    with pytest.raises(TeacherError, match="'head_dist:input' does not determine the logits"):
        Teacher(model)
