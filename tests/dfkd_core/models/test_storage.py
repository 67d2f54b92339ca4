import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfkd_core.errors import ConfigError, DfkdError, TeacherError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import load_model, read_card, save_model
from dfkd_core.models.teacher import load_teacher
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.5,), layer="fc1")
MODULE = """
from pathlib import Path
from torch import nn

Path(IMPORTED).touch()


def make(width: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 900, 10))
"""


@pytest.fixture
def stored(tmp_path):
    """A stored model in a folder."""
    save_model(tmp_path / "stored", build_classifier(CARD, seed=0))
    return tmp_path / "stored"


@pytest.fixture
def with_factory(tmp_path, monkeypatch):
    """A stored model of the user's own factory, whose module notes that it is imported."""
    (tmp_path / "stored_nets.py").write_text(MODULE.replace("IMPORTED", repr(str(tmp_path / "imported"))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = SourceConfig(model="stored_nets:make", image_size=32, in_channels=1)
    save_model(tmp_path / "stored", bring_teacher(source, scratch=tmp_path).classifier)
    del sys.modules["stored_nets"]
    (tmp_path / "imported").unlink()
    yield tmp_path / "stored"
    sys.modules.pop("stored_nets", None)


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_factory__is_not_imported_before_it_is_trusted(with_factory):
    refused = r"stored names the network stored_nets:make.*--trust-factory stored_nets:make.*trusted_factories=\["
    for load in (load_model, load_teacher):
        for trusted in ((), ("other:make",), ("stored_nets",), ("stored_nets:make_more",)):
            with pytest.raises(TeacherError, match=refused):
                load(with_factory, trusted_factories=trusted)
    with pytest.raises(TeacherError, match=refused):
        bring_teacher(SourceConfig(model=str(with_factory)), scratch=with_factory)
    assert not (with_factory.parent / "imported").exists()
    assert "stored_nets" not in sys.modules
    loaded = load_model(with_factory, trusted_factories=["stored_nets:make"])
    assert loaded.card.network == "stored_nets:make"
    assert load_teacher(with_factory, trusted_factories=["stored_nets.make"]).num_features == 1800
    brought = bring_teacher(
        SourceConfig(model=str(with_factory)), scratch=with_factory, trusted_factories=["stored_nets:make"]
    )
    assert brought.classifier.card == loaded.card


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("os:system", {"command": "touch executed"}),
        ("os.system", {"command": "touch executed"}),
        ("subprocess:run", {"args": ["touch", "executed"]}),
        ("shutil:rmtree", {"path": "stored"}),
        ("builtins:exec", {"source": "open('executed', 'w')"}),
        ("pathlib:Path.touch", {"self": "executed"}),
        ("timm:create_model", {"model_name": "resnet18"}),
        ("timm:hf-hub:timm/resnet18", {}),
        ("timm:hf_hub:timm/resnet18", {}),
        ("timm:local-dir:stored", {}),
        ("torchvision:fasterrcnn_resnet50_fpn", {}),
        ("torch.nn.Linear", {"in_features": 1, "out_features": 1}),
    ],
)
def test_a_stored_card__calls_nothing_of_others(stored, monkeypatch, network, arguments):
    monkeypatch.chdir(stored.parent)
    change(stored, network=network, arguments=arguments)
    with pytest.raises(DfkdError, match=r"--trust-factory|cannot be built"):
        load_model(Path("stored"))
    assert not Path("executed").exists()
    assert (stored / "config.json").exists()


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("timm:resnet18", {"checkpoint_path": "weights.pth"}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"pretrained_cfg": {"file": "weights.pth"}}),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"url": "http://localhost/weights.pth"}}),
        ("torchvision:resnet18", {"weights": "IMAGENET1K_V1"}),
        ("torchvision:resnet18", {"weights_backbone": "DEFAULT"}),
    ],
)
def test_arguments_that_load_files__are_refused_everywhere(stored, network, arguments):
    change(stored, network=network, arguments=arguments)
    name = next(iter(arguments))
    with pytest.raises(TeacherError, match=rf"{name}=.* makes {network} load a file"):
        load_model(stored, trusted_factories=[network])
    with pytest.raises(ConfigError, match=rf"arguments: {name}=.*--weights"):
        SourceConfig(model=network, arguments=arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": 10**9},
        {"num_classes": 10**9},
        {"num_classes": 9_999_999},
        {"in_channels": 10**9},
        {"in_channels": 9_999, "mean": [0.5] * 9_999, "std": [0.5] * 9_999, "image_size": 16_000},
        {"image_size": 16_000},
        {"network": "alexnet", "image_size": 16_000},
        {"network": "lenet5@64", "image_size": 4_000},
        {"network": "torchvision:resnet18", "num_classes": 9_999_999},
        {"network": "torchvision:vit_b_16", "image_size": 16_000},
        {"network": "timm:test_vit", "arguments": {"depth": 10**9}},
        {"network": "timm:test_vit", "arguments": {"depth": 10**5}},
        {"network": "timm:test_vit", "arguments": {"embed_dim": 10**5, "depth": 2}},
        {"network": "timm:test_vit", "image_size": 16_000},
        {"network": "timm:resnet18", "arguments": {"layers": [10**5, 2, 2, 2]}},
    ],
)
def test_a_huge_network__is_one_sentence(stored, fields):
    change(stored, **fields)
    with pytest.raises((TeacherError, ConfigError), match=r"at most|times as large|is above|be built|not fit"):
        load_model(stored)


@pytest.mark.parametrize("name", ["resnet18_eighth", "torchvision:squeezenet1_1", "timm:test_vit", "timm:test_resnet"])
def test_a_network_of_a_package__is_within_the_limit(tmp_path, name):
    card = dataclasses.replace(CARD, network=name, image_size=64, layer=":output")
    save_model(tmp_path, build_classifier(card, seed=0))
    assert load_model(tmp_path).card == card


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": 5}, "network must be a text"),
        ({"image_size": "32"}, "image_size must be an integer above 0"),
        ({"image_size": 32.0}, "image_size must be an integer above 0"),
        ({"in_channels": True}, "in_channels must be an integer above 0"),
        ({"num_classes": 0}, "num_classes must be an integer above 0"),
        ({"mean": 0.5}, "mean must be a list of numbers"),
        ({"std": ["0.5"]}, "std must be a list of numbers"),
        ({"class_names": [1] * 10}, "class_names must be a list of texts"),
        ({"arguments": [1]}, "arguments must be an object"),
        ({"channels_last": 1}, "channels_last must be true or false"),
        ({"outputs": "votes"}, "outputs must be one of"),
        ({"colour": 1}, "unknown fields colour"),
    ],
)
def test_a_card_with_a_wrong_field__names_it(stored, fields, message):
    change(stored, **fields)
    with pytest.raises(TeacherError, match=rf"config\.json does not describe a model: {message}"):
        read_card(stored)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"network": "lenet5", "network": "os:system"}', "it has the key 'network' twice"),
        ('{"network": NaN}', "it holds NaN"),
        ("[" * 100_000, "."),
        ("[]", "no JSON object"),
        ('{"network": "lenet5"}', "image_size.* are missing"),
        ("\ufeff{}", "."),
    ],
)
def test_a_card_that_is_read_in_two_ways__is_refused(stored, text, message):
    (stored / "config.json").write_text(text)
    with pytest.raises(TeacherError, match=rf"config\.json does not describe a model: .*{message}"):
        load_model(stored)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (
            {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
            r"\(ViTForImage.*SOURCE ",
        ),
        ({"architecture": "resnet18", "num_classes": 10}, r"\(resnet18\).*--teacher timm:resnet18 "),
        ({}, "another package: its config.json has no field network"),
    ],
)
def test_a_folder_of_another_package__is_named_as_such(tmp_path, content, hint):
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"classifier.weight": torch.zeros(2, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError, match=rf"{hint}.*--weights .*model\.safetensors"):
        load_model(tmp_path)


def test_weights_that_are_read_in_two_ways__are_refused(stored):
    path = stored / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(TeacherError, match="not a complete safetensors file"):
        load_model(stored)


def test_a_pipe__is_not_waited_for(stored):
    for name in ("model.safetensors", "config.json"):
        (stored / name).unlink()
        os.mkfifo(stored / name)
        with pytest.raises(TeacherError, match="is not a regular file"):
            load_model(stored)


def test_the_loaded_weights__are_those_of_the_file_when_it_was_read(stored):
    loaded = load_model(stored)
    before = loaded.network.state_dict()["fc2.bias"].clone()
    weights = load_file(stored / "model.safetensors")
    with (stored / "model.safetensors").open("r+b") as stream:
        stream.seek(-weights["fc2.weight"].nbytes, 2)
        stream.write(bytes(weights["fc2.weight"].nbytes))
    assert torch.equal(loaded.network.state_dict()["fc2.bias"], before)
