"""What the README shows works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dfkd_core.export.run import choose_images, export_model, probe_images
from dfkd_core.models.built_in import build_network
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_flows.cli import app

ROOT = Path(__file__).resolve().parents[2]


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example__makes_and_judges_a_student() -> None:
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "my_module" in block)
    assert len([line for line in example.splitlines() if line]) < 15
    smaller = example.replace("=2000", "=100").replace("=500", "=50").replace('_half")', '_half", epochs=1)')
    assert smaller.count("=100") == smaller.count("=50)") == smaller.count("epochs=1") == 1
    # The same weights every time: with some random ones the example fails.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        my_module = build_network("lenet5", in_channels=1, image_size=32, num_classes=10)
    names: dict[str, Any] = {"my_module": my_module}
    exec(smaller, names)
    assert names["report"].proxy
    assert names["report"].num_images == 50
    assert 0 <= names["report"].agreement <= 1


def test_deploy__every_loader_gives_the_students_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = ModelCard(
        network="lenet5_half", in_channels=3, image_size=32, num_classes=10, mean=(0.2, 0.3, 0.4), std=(0.2, 0.3, 0.4),
        layer="fc1",
    )  # fmt: skip
    student = build_classifier(card, seed=0).eval()
    checked, calibration = choose_images(probe_images(card.image_shape))
    export_model(
        student, tmp_path / "exported", formats=("safetensors", "pt2", "onnx"), images=checked, calibration=calibration
    )
    monkeypatch.chdir(tmp_path)
    section = README.split("## Deploy")[1].split("\n## ")[0]
    prepare, *loaders = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    # Black images would hide a mistake in the normalisation.
    prepare = prepare.replace("np.zeros(", "np.full(").replace(
        ", dtype=np.float32)  # in", ", 0.7, dtype=np.float32)  # in"
    )
    names: dict[str, Any] = {}
    exec(prepare, names)
    assert names["images"].mean() == pytest.approx(0.7)
    expected = student(torch.full((2, 3, 32, 32), 0.7)).detach()
    assert len(loaders) == 4
    for loader in loaders:
        exec(loader, names)
        logits = torch.as_tensor(names.pop("logits")).detach()
        tolerance = 0.05 if "/model_int8" in loader else 1e-5
        assert (logits - expected).abs().max() <= tolerance * expected.abs().max(), loader


def test_commands__exist_with_these_options() -> None:
    lines = re.findall(r"^ *dfkd ([a-z-]+)([^#\n]*)", README, re.MULTILINE)
    assert len(lines) >= 4
    for command, arguments in lines:
        text = CliRunner().invoke(app, [command, "--help"]).output
        assert [option for option in re.findall(r"--[a-z-]+", arguments) if option not in text] == []


def test_files__that_are_linked_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
