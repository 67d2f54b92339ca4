import dataclasses
import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier, describe
from dfkd_core.models.storage import load_model, model_digest, save_model

CARD = ModelCard(
    network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.25,), std=(0.5,), layer="fc1",
    class_names=tuple("abcdefghij"),
)  # fmt: skip


def test_images_are_normalised_inside():
    classifier = build_classifier(CARD, seed=0).eval()
    images = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(classifier(images), classifier.network((images - 0.25) / 0.5))


def test_gradients_flow_after_a_pass_in_inference_mode():
    classifier = build_classifier(CARD, seed=0).eval()
    images = torch.rand(3, 1, 32, 32, requires_grad=True)
    with torch.inference_mode():
        expected = classifier(images)
    logits = classifier(images)
    torch.testing.assert_close(logits, expected.clone())
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().sum() > 0


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, again, other = (build_classifier(CARD, seed=seed) for seed in (0, 0, 1))
    assert model_digest(first) == model_digest(again) != model_digest(other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(("width", "stride", "channels_last"), [(8, 2, False), (8, 1, True), (16, 2, True)])
def test_channels_do_not_come_last_where_a_gradient_would_be_written_past_its_memory(width, stride, channels_last):
    class Projecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.project = nn.Conv2d(1, width, 3), nn.Conv2d(width, 16, 1, stride)
            self.fc = nn.Linear(16, 10)

        def forward(self, images):
            return self.fc(self.project(self.conv(images)).mean((2, 3)))

    classifier = Classifier(Projecting(), dataclasses.replace(CARD, network="in memory", layer=""))
    describe(classifier)
    assert classifier.card.channels_last is channels_last


def test_a_network_that_cannot_be_copied_is_named():
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    network.__dict__["lock"] = threading.Lock()
    classifier = Classifier(network, dataclasses.replace(CARD, network="in memory", layer=""))
    with pytest.raises(ConfigError, match=r"^The network Sequential cannot be copied: cannot pickle '_thread\.lock'"):
        describe(classifier)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    classifier = build_classifier(CARD, seed=0)
    save_model(tmp_path, classifier)
    loaded = load_model(tmp_path)
    assert loaded.card == CARD
    assert model_digest(loaded) == model_digest(classifier)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_digest_covers_the_card():
    classifier = build_classifier(CARD, seed=0)
    before = model_digest(classifier)
    classifier.card = dataclasses.replace(CARD, mean=(0.3,))
    assert model_digest(classifier) != before


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    save_model(tmp_path, build_classifier(CARD, seed=0))
    weights = load_file(tmp_path / "model.safetensors")
    weights["extra"] = weights.pop("fc2.bias")
    weights["fc2.weight"] = torch.zeros(11, 84)
    weights["fc1.bias"][3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError) as error:
        load_model(tmp_path)
    for part in (
        "missing: fc2.bias",
        "unexpected: extra",
        "fc2.weight (11, 84) for (10, 84)",
        "NaN or Inf in: fc1.bias",
    ):
        assert part in str(error.value)


def test_truncated_weights_are_one_clear_error(tmp_path):
    save_model(tmp_path, build_classifier(CARD, seed=0))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TeacherError, match=r"not a complete safetensors file.*make it with: dfkd run"):
        load_model(tmp_path)


def test_a_missing_model_names_the_next_command(tmp_path):
    with pytest.raises(TeacherError, match=r"config\.json is missing.*dfkd run"):
        load_model(tmp_path)


def test_a_card_with_an_unknown_field_is_an_error(tmp_path):
    save_model(tmp_path, build_classifier(CARD, seed=0))
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "colour": 1}))
    with pytest.raises(TeacherError, match="colour"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.1, 0.2)}, "mean has 2 values for 1 channels"),
        ({"std": (0.0,)}, "std must be greater than 0"),
        ({"class_names": ("a",)}, "1 class names for 10 classes"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CARD, **change)
