"""An exported student of timm, built again by timm alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dfkd_core.export.forms import write_safetensors
from dfkd_core.export.run import export_model
from dfkd_core.export.timm_files import add_timm_fields
from dfkd_core.models.architectures import import_timm
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.storage import load_model


def make_student(network: str, size: int = 32, channels: int = 3, **arguments: Any) -> Classifier:
    card = ModelCard(
        network=network, in_channels=channels, image_size=size, num_classes=4, mean=(0.3, 0.4, 0.5)[:channels],
        std=(0.2, 0.3, 0.4)[:channels], layer="", class_names=tuple("abcd"), arguments=arguments,
    )  # fmt: skip
    return build_classifier(card, seed=0).eval()


def export(student: Classifier, out: Path) -> bool:
    images = torch.randint(0, 256, (20, *student.card.image_shape), dtype=torch.uint8)
    (form,) = export_model(student, out, formats=("safetensors",), images=images).forms
    return form.loads_in_timm


@pytest.mark.parametrize(
    "student",
    [
        {"network": "timm:test_resnet"},
        {"network": "timm:test_resnet.r160_in1k", "channels": 1},
        {"network": "timm:test_vit", "size": 48},
        pytest.param({"network": "timm:test_convnext", "drop_path_rate": 0.1}, marks=pytest.mark.slow),
    ],
    ids=lambda student: student["network"],
)
def test_timm__builds_the_same_network(tmp_path: Path, student: dict[str, Any]) -> None:
    made = make_student(**student)
    assert export(made, tmp_path)
    timm = import_timm()
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    settings = timm.data.resolve_data_config({}, model=network)
    assert settings["input_size"] == made.card.image_shape
    mean, std = (torch.tensor(settings[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    images = torch.rand(3, *made.card.image_shape)
    with torch.no_grad():
        torch.testing.assert_close(network((images - mean) / std), made(images), atol=1e-5, rtol=1e-4)
    assert network.pretrained_cfg["label_names"] == ["a", "b", "c", "d"]
    assert load_model(tmp_path).card == made.card
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}


@pytest.mark.parametrize("network", ["timm:test_resnet@0.5", "lenet5_half"])
def test_other_networks__have_no_fields_of_timm(tmp_path: Path, network: str) -> None:
    student = make_student(network)
    write_safetensors(student, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    images = torch.zeros(10, *student.card.image_shape, dtype=torch.uint8)
    assert not add_timm_fields(tmp_path, student, images, torch.zeros(10, 4))
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_network_that_answers_otherwise__has_no_fields_of_timm(tmp_path: Path) -> None:
    student = make_student("timm:test_resnet")
    write_safetensors(student, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    images = torch.zeros(10, *student.card.image_shape, dtype=torch.uint8)
    assert not add_timm_fields(tmp_path, student, images, torch.ones(10, 4))
    assert (tmp_path / "config.json").read_bytes() == before
