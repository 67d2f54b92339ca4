"""What the README shows works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dfkd_core.networks import build_network
from flows.cli import app
from tasks.code import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example__makes_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "my_module" in block)
    smaller = example.replace("=2000", "=100").replace('start="random")', 'start="random", epochs=1)')
    assert smaller.count("=100") == 2
    # The same weights every time: with some random ones the example fails.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        my_module = build_network("lenet5", in_channels=1, image_size=32, num_classes=10)
    exec(smaller, {"my_module": my_module})
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_commands__exist_with_these_options() -> None:
    lines = re.findall(r"^ *dfkd ([a-z]+)([^#\n]*)", README, re.MULTILINE)
    assert len(lines) >= 4
    for command, arguments in lines:
        text = CliRunner().invoke(app, [command, "--help"]).output
        assert [option for option in re.findall(r"--[a-z-]+", arguments) if option not in text] == []


def test_files__that_are_linked_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert [link for link in links if not (ROOT / link).exists()] == []
