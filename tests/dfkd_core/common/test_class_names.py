"""Names of classes are refused in one sentence, wherever they come from, if two are the same or one is empty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd_core.common.class_names import distinct_names
from dfkd_core.data.user_images import open_file
from dfkd_core.errors import ConfigError, DataError, TeacherError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import read_card, save_model
from dfkd_core.teachers.source import SourceConfig

CASES = pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("cat", "dog", "cat"), "the classes 0 and 2 have the same name 'cat'"),
        (("", "", ""), "class 0 has an empty name"),
        (("cat", " ", "dog"), "class 1 has an empty name"),
    ],
)


@CASES
def test_of_a_teacher(names: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"class_names: {fault}"):
        SourceConfig(model="lenet5", class_names=names)
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.5,), std=(0.25,), layer="fc1"
    )
    save_model(tmp_path, build_classifier(card, seed=0))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": names}))
    with pytest.raises(TeacherError, match=f"does not describe a model: class_names: {fault}"):
        read_card(tmp_path)


@CASES
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_of_a_data_set(names: tuple[str, ...], fault: str, suffix: str, tmp_path: Path) -> None:
    path, images, labels = tmp_path / f"set{suffix}", torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.arange(3)
    if suffix == ".npz":
        np.savez(path, images=images.numpy(), labels=labels.numpy(), class_names=np.array(names))
    else:
        save_file({"images": images, "labels": labels}, path, metadata={"class_names": json.dumps(names)})
    with pytest.raises(DataError, match=f"class_names in .*: {fault}"):
        open_file(path)


def test_distinct_names__get_the_number_of_the_class() -> None:
    assert distinct_names(["crane", "owl", "crane"]) == ("crane (0)", "owl", "crane (2)")
