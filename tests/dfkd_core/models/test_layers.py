from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_core.models.layers import OUTPUT, find_modelled_layer, layer_candidates, recorded, replaced

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
    found = [(c.address, c.kind, c.shape, c.is_exact) for c in layer_candidates(classifier(TwoHeads()), IMAGES)]
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
