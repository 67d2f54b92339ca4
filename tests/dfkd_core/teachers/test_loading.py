import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd_core.common.vision import models
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.storage import load_model, model_digest, save_model
from dfkd_core.teachers.loading import bring_teacher, source_digest
from dfkd_core.teachers.source import SourceConfig

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture(autouse=True)
def zoo(monkeypatch):
    """Make the fixtures importable, as a user's own package is."""
    monkeypatch.syspath_prepend(str(FIXTURES))
    sys.modules.pop("teachers_zoo", None)
    import teachers_zoo

    torch.manual_seed(0)
    return teachers_zoo


def bring(tmp_path, layer="", hint=0, **settings):
    return bring_teacher(SourceConfig(**settings), scratch=tmp_path, layer=layer, image_size_hint=hint)


def weights_of(network, tmp_path, name="weights.pt"):
    torch.save({"state_dict": network.state_dict()}, tmp_path / name)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "key", "layer"),
    [
        ("Plain", (1, 32, 32), "logits", "", "fc:input"),
        ("GroupNormed", (1, 32, 32), "probabilities", "0", "fc:input"),
        ("LayerNormed", (1, 8, 8), "log_probabilities", "logits", "head:input"),
        ("Binary", (3, 32, 32), "binary_probability", "", "fc:input"),
    ],
)
def test_what_is_not_said_is_found_out(zoo, tmp_path, name, shape, outputs, key, layer):
    network = getattr(zoo, name)().eval()
    brought = bring(tmp_path, model=f"teachers_zoo:{name}", weights=weights_of(network, tmp_path))
    card = brought.classifier.card
    assert (card.image_shape, card.outputs, card.output_key, card.layer) == (shape, outputs, key, layer)
    assert card.num_classes == (2 if name == "Binary" else 10)
    images = torch.rand(4, *shape)
    answer = network(images)
    answer = answer[0] if isinstance(answer, tuple) else answer["logits"] if isinstance(answer, dict) else answer
    probabilities = brought.classifier(images).softmax(1)
    if name == "Binary":
        torch.testing.assert_close(probabilities[:, 1], answer)
    else:
        wanted = answer if outputs == "probabilities" else answer.softmax(1)
        torch.testing.assert_close(probabilities, wanted)
    assert any("normalisation: none given" in note for note in brought.notes)


def test_mean_std_and_range_are_those_of_the_training(zoo, tmp_path):
    network = zoo.Plain().eval()
    path = weights_of(network, tmp_path)
    brought = bring(
        tmp_path, model="teachers_zoo:Plain", weights=path, mean=(127.5,), std=(51.0,), value_range=(0, 255)
    )
    images = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(brought.classifier(images), network((255 * images - 127.5) / 51))
    from_minus_one = bring(tmp_path, model="teachers_zoo:Plain", weights=path, value_range=(-1, 1))
    torch.testing.assert_close(from_minus_one.classifier(images), network(2 * images - 1))


def test_a_network_that_calls_view_is_given_what_view_takes(zoo, tmp_path):
    classifier = bring(tmp_path, model="teachers_zoo:Plain", weights=weights_of(zoo.Plain(), tmp_path)).classifier
    assert not classifier.card.channels_last
    images = torch.rand(3, 1, 32, 32)
    last = images.clone(memory_format=torch.channels_last)
    torch.testing.assert_close(classifier(last), classifier(images))
    assert bring(tmp_path, model="torchvision:resnet18", num_classes=4, image_size=32).classifier.card.channels_last


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TwoInputs", r"cannot be called with images alone: .*missing 1 required positional argument: 'mask'"),
        ("Embedding", r"rejects float images of shape \(1, 32, 32\)"),
        ("Restless", r"changes by [\d.]+% from call to call, so it draws random numbers in eval mode"),
        ("Detached", r"No gradient reaches the image"),
        ("Maps", r"returns shape \(16, 8, 30, 30\) for 16 images"),
        ("Constant", r"output is the same for all probe images"),
        ("Forgetful", r"builds another network when it is called again"),
    ],
)
def test_what_cannot_be_a_teacher_is_one_clear_sentence(zoo, tmp_path, name, message):
    path = weights_of(getattr(zoo, name)(), tmp_path)
    with pytest.raises(TeacherError, match=message):
        bring(tmp_path, model=f"teachers_zoo:{name}", weights=path)


def test_weights_with_nan_are_refused_by_name(zoo, tmp_path):
    network = zoo.Plain()
    with torch.no_grad():
        network.fc.bias[0] = float("nan")
    with pytest.raises(TeacherError, match=r"NaN or Inf in: fc\.bias"):
        bring(tmp_path, model="teachers_zoo:Plain", weights=weights_of(network, tmp_path))


def test_outputs_that_overflow_are_found_before_anything_expensive(zoo, tmp_path):
    network = zoo.Plain()
    with torch.no_grad():
        network.conv1.weight.mul_(1e30)
        network.conv2.weight.mul_(1e30)
    with pytest.raises(TeacherError, match="output is NaN or Inf for 16 of 16 probe images"):
        bring(tmp_path, model="teachers_zoo:Plain", weights=weights_of(network, tmp_path))


def test_weights_of_another_network_say_what_differs(zoo, tmp_path):
    path = weights_of(zoo.GroupNormed(), tmp_path)
    with pytest.raises(
        TeacherError, match=r"do not fit teachers_zoo:Plain: missing: conv1\.bias.*unexpected: conv\.bias"
    ):
        bring(tmp_path, model="teachers_zoo:Plain", weights=path)
    narrow = weights_of(zoo.Plain(), tmp_path)
    with pytest.raises(TeacherError, match=r"wrongly shaped: conv1\.bias \(8,\) for \(16,\)"):
        bring(tmp_path, model="teachers_zoo:Plain", weights=narrow, arguments={"width": 16})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nope"}, "no network 'nope'"),
        ({"model": "torchvision:resnet81"}, "no model 'resnet81'. Close: resnet18"),
        ({"model": "no_such_package:make"}, "No module 'no_such_package'"),
        ({"model": "teachers_zoo:Nope"}, "teachers_zoo has no 'Nope'"),
        ({"model": "teachers_zoo:nn"}, "is a module; it must be a function"),
        ({"model": "teachers_zoo:Plain", "arguments": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"model": "timm:no_such_model"}, "Unknown model"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_is_wrong(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        bring(tmp_path, **settings)


def test_a_missing_file_names_the_setting(tmp_path):
    with pytest.raises(TeacherError, match=r"No weights file .*nowhere\.pt.*teacher\.source\.weights"):
        bring(tmp_path, model="teachers_zoo:Plain", weights=str(tmp_path / "nowhere.pt"))


def test_a_file_of_weights_alone_asks_for_the_architecture(zoo, tmp_path):
    save_file(zoo.Plain().state_dict(), tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", weights_of(zoo.Plain(), tmp_path)):
        with pytest.raises((TeacherError, ConfigError), match="Name the architecture"):
            bring(tmp_path, model=str(path))


def test_torchvision_networks_follow_channels_and_classes_of_their_weights(tmp_path):
    network = models.get_model("resnet18", num_classes=7)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    brought = bring(tmp_path, model="torchvision:resnet18", weights=weights_of(network, tmp_path), hint=32)
    assert brought.classifier.card.image_shape == (1, 32, 32)
    assert brought.classifier.card.num_classes == 7
    images = torch.rand(2, 1, 32, 32)
    mean, std = (sum(values) / 3 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = network.eval()((images - mean) / std)
    torch.testing.assert_close(brought.classifier(images), wanted, rtol=1e-4, atol=1e-4)
    assert any("normalisation: none given, so that of torchvision is used" in note for note in brought.notes)


def test_timm_networks_are_built_for_the_shape(tmp_path):
    card = bring(tmp_path, model="timm:test_vit", num_classes=5, image_size=32, in_channels=1).classifier.card
    assert (card.image_shape, card.num_classes, card.layer) == ((1, 32, 32), 5, "head:input")


def test_a_built_in_network_and_a_folder_are_teachers_too(tmp_path):
    brought = bring(tmp_path, model="lenet5@0.5", num_classes=4, image_size=32)
    assert brought.classifier.card.layer == "fc1"
    save_model(tmp_path / "stored", brought.classifier)
    again = bring(tmp_path, model=str(tmp_path / "stored"))
    assert model_digest(again.classifier) == model_digest(brought.classifier)


@pytest.mark.parametrize("name", ["Plain", "GroupNormed", "LayerNormed", "Transformer", "Binary"])
def test_what_is_brought_is_what_is_stored_and_loaded(zoo, tmp_path, name):
    brought = bring(tmp_path, model=f"teachers_zoo:{name}", weights=weights_of(getattr(zoo, name)(), tmp_path), hint=8)
    save_model(tmp_path / "stored", brought.classifier)
    loaded = load_model(tmp_path / "stored", trusted_factories=[f"teachers_zoo:{name}"])
    assert loaded.card == brought.classifier.card
    assert model_digest(loaded) == model_digest(brought.classifier)
    images = torch.rand(3, *loaded.card.image_shape)
    torch.testing.assert_close(loaded(images), brought.classifier(images))


def test_a_layer_can_be_named(zoo, tmp_path):
    path = weights_of(zoo.Plain(), tmp_path)
    assert bring(tmp_path, layer=OUTPUT, model="teachers_zoo:Plain", weights=path).classifier.card.layer == OUTPUT


def test_outputs_and_class_names_can_be_said(zoo, tmp_path):
    path = weights_of(zoo.Plain(), tmp_path)
    settings = {"model": "teachers_zoo:Plain", "weights": path}
    card = bring(tmp_path, **settings, outputs="log_probabilities", class_names=tuple("abcdefghij")).classifier.card
    assert (card.outputs, card.class_names) == ("log_probabilities", tuple("abcdefghij"))
    with pytest.raises(ConfigError, match="1 class names for 10 classes"):
        bring(tmp_path, **settings, class_names=("a",))
    with pytest.raises(
        TeacherError, match=r"fit .*num_classes 10|has 10 outputs and teacher\.source\.num_classes is 9"
    ):
        bring(tmp_path, **settings, num_classes=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 7}, "with num_classes 10, and teacher.source has num_classes 7"),
        ({"in_channels": 3}, "with in_channels 1, and teacher.source has in_channels 3"),
        ({"num_classes": 7, "in_channels": 1}, "with num_classes 10, and teacher.source has num_classes 7"),
        (
            {"num_classes": 7, "in_channels": 3},
            "with num_classes 10 and in_channels 1, and teacher.source has num_classes 7 and in_channels 3",
        ),
    ],
)
def test_a_setting_that_the_weights_contradict__is_named(tmp_path, settings, message):
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
    )
    path = weights_of(build_classifier(card, seed=0).network, tmp_path)
    with pytest.raises(TeacherError, match=f"fit lenet5 {message}\\. Correct it, or leave it out"):
        bring(tmp_path, model="lenet5", weights=path, image_size=32, **settings)


def parts_of(state, *names):
    return {name: tensor for name, tensor in state.items() if name.startswith(names)}


@pytest.mark.parametrize("how", ["whole names", "names of the parts", "wrapped", "nested"])
def test_weights_in_several_parts_of_a_file__are_put_together(zoo, tmp_path, how):
    network = zoo.Plain()
    state = network.state_dict()
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    content = {
        "whole names": {"backbone": rest, "head": parts_of(state, "fc."), "optimizer": {"step": torch.ones(1)}},
        "names of the parts": {
            part: {name.partition(".")[2]: t for name, t in parts_of(state, part).items()}
            for part in ("conv1", "conv2", "fc")
        },
        "wrapped": {"backbone": {f"module.{name}": t for name, t in rest.items()}, "head": parts_of(state, "fc.")},
        "nested": {"model": {"backbone": rest, "head": parts_of(state, "fc.")}, "epoch": 3},
    }[how]
    torch.save(content, tmp_path / "parts.pt")
    brought = bring(tmp_path, model="teachers_zoo:Plain", weights=str(tmp_path / "parts.pt"), image_size=16)
    assert "of several parts of the file" in brought.notes[0]
    assert all(torch.equal(t, state[name]) for name, t in brought.classifier.network.state_dict().items())


def test_parts_that_do_not_fit_exactly__are_listed(zoo, tmp_path):
    state = zoo.Plain().state_dict()
    content = {"backbone": parts_of(state, "fc."), "other": {"x.weight": torch.ones(2, 2)}}
    torch.save(content, tmp_path / "parts.pt")
    with pytest.raises(TeacherError, match=r"several state dicts, backbone, other: choose one with .*weights_key"):
        bring(tmp_path, model="teachers_zoo:Plain", weights=str(tmp_path / "parts.pt"))


@pytest.mark.parametrize("order", [("last", "best"), ("best", "last")])
def test_the_state_dict_that_was_taken__is_noted_with_the_others(zoo, tmp_path, order):
    torch.save({name: zoo.Plain().state_dict() for name in order}, tmp_path / "two.pt")
    brought = bring(tmp_path, model="teachers_zoo:Plain", weights=str(tmp_path / "two.pt"), image_size=16)
    assert f"under {order[0]!r} (also there: {order[1]}; choose with weights_key)" in brought.notes[0]


def test_the_digest_follows_files_and_the_module_of_a_factory(zoo, tmp_path):
    path = weights_of(zoo.Plain(), tmp_path)
    config = SourceConfig(model="teachers_zoo:Plain", weights=path)
    before = source_digest(config)
    assert source_digest(dataclasses.replace(config, image_size=32)) == before
    weights_of(zoo.Plain(), tmp_path)
    assert source_digest(config) != before
    assert source_digest(SourceConfig(model="torchvision:resnet18")) == source_digest(
        SourceConfig(model="timm:test_vit")
    )
