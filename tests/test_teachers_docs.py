"""Every recipe of docs/teachers.md is run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from dfkd_core.data.datasets import DataConfig, load_dataset
from dfkd_core.models.architectures import build_architecture
from dfkd_core.models.storage import save_model
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.cli import app

ROOT = Path(__file__).resolve().parents[1]

DOCUMENT = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.pool, self.fc1, self.fc2 = nn.MaxPool2d(2), nn.Linear(8 * width, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        return self.fc2(torch.relu(self.fc1(x.view(x.size(0), -1))))


def make_net(width=16):
    return Net(width)


def make_small_net():
    return Net(8)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.other = Net(8), nn.Linear(64, 3)

    def forward(self, x):
        return self.other(x.flatten(1)), self.net(x)
"""

LOG_MODELS = """
import mlflow, torch
from dfkd_core import load_model
from my_nets import make_net
from pathlib import Path

mlflow.set_tracking_uri("sqlite:///mlflow.db")
net = make_net()
net.load_state_dict(torch.load("ckpt.pth")["model"])
example = torch.zeros(2, 1, 8, 8).numpy()
options = dict(name="model", serialization_format="pt2", input_example=example)
with mlflow.start_run() as run:
    mlflow.pytorch.log_model(net.eval(), **options)
with mlflow.start_run():
    student = load_model(Path("my_teacher"), trusted_factories=["my_nets:make_net"])
    mlflow.pytorch.log_model(student, **options, registered_model_name="dfkd-student-digits")
with mlflow.start_run():
    options = dict(name="model", serialization_format="pickle", registered_model_name="pickled-net")
    mlflow.pytorch.log_model(net.eval(), **options)
mlflow.MlflowClient().set_registered_model_alias("dfkd-student-digits", "champion", 1)
print("run", run.info.run_id)
"""


def options_of(command: str) -> list[str]:
    return shlex.split(command)[1:]


def is_download(command: str) -> bool:
    return "pretrained" in command or "a1_in1k" in command


def is_mlflow(command: str) -> bool:
    return "models:/" in command or "runs:/" in command


def train(network: Any, epochs: int) -> None:
    data = load_dataset(DataConfig(dataset="digits", image_size=8), "train")
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(data)).split(64):
            optimizer.zero_grad()
            images = (data.images[batch] / 255 - 0.5) / 0.5
            functional.cross_entropy(network(images), data.labels[batch]).backward()
            optimizer.step()
    network.eval()


def fill(folder: Path, network: Any) -> None:
    """Write the files that the document's commands name."""
    torch.save({"epoch": 3, "model": network.state_dict()}, folder / "ckpt.pth")
    torch.save({f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, folder / "renamed.pth")
    torch.save({"model": {}, "state_dict_ema": network.state_dict()}, folder / "ema.pth")
    save_file(network.state_dict(), folder / "net.safetensors")
    torch.save(network, folder / "whole.pt")
    source = SourceConfig(
        model="my_nets:make_net", weights=str(folder / "ckpt.pth"), mean=(0.5,), std=(0.5,), image_size=8
    )
    save_model(folder / "my_teacher", bring_teacher(source, scratch=folder).classifier)
    data = load_dataset(DataConfig(dataset="digits", image_size=8), "test")
    np.savez(folder / "test.npz", images=data.images[:, 0].numpy(), labels=data.labels.numpy())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a user's module and files."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_nets.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        sys.modules.pop("my_nets", None)
        torch.manual_seed(0)
        network = build_architecture("my_nets:make_net", in_channels=1, image_size=8, num_classes=10)
        train(network, 8)
        fill(folder, network)
        yield folder
    sys.modules.pop("my_nets", None)


@pytest.fixture(scope="module")
def user(
    written: Path, tmp_path_factory: pytest.TempPathFactory, make_project: Callable[[Path], Path]
) -> Iterator[Path]:
    """A project with the user's files in it, which is the current folder."""
    project = make_project(tmp_path_factory.mktemp("project"))
    for path in written.iterdir():
        if path.name != "__pycache__":
            (project / path.name).symlink_to(path)
    params = (project / "params.yaml").read_text()
    assert "  batch_size: 500\n" in params
    # How long a synthesis takes is measured on so many images.
    (project / "params.yaml").write_text(params.replace("  batch_size: 500\n", "  batch_size: 16\n", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        yield project


@cache
def call(command: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, options_of(command))
    assert result.exit_code == code, result.output
    return result.output


def local(command: str) -> bool:
    others = ("dfkd run", "dfkd export", "torchvision:", "timm:", "net.pt2", "net.ts", "net.onnx")
    return not is_download(command) and not is_mlflow(command) and not any(word in command for word in others)


@pytest.mark.parametrize("command", [command for command in COMMANDS if local(command)])
def test_a_recipe_for_your_own_code_works(user: Path, command: str) -> None:
    output = call(command)
    assert ("modelled layer" if "inspect" in command else "* is used.") in output


def test_what_is_said_changes_what_is_brought(user: Path) -> None:
    by_range = [call(command) for command in COMMANDS if "value_range" in command]
    assert "mean (0.5), std (0.2)" in by_range[0]
    assert "mean (0.5), std (0.5)" in by_range[1]
    assert "'state_dict_ema'" in call(next(command for command in COMMANDS if "weights_key" in command))
    assert "mean (0.5), std (0.5)" in call(next(command for command in COMMANDS if "my_teacher" in command))
    assert "fc1, 32 units" in call(next(command for command in COMMANDS if "teacher.layer=fc1" in command))
    heads = call(next(command for command in COMMANDS if "TwoHeads" in command))
    assert re.search(r"classes +10\n", heads)
    assert "logits at '1'" in heads
    assert re.search(r"\* +fc2:input ", call(next(command for command in COMMANDS if "layers" in command)))


def test_programs_are_written_and_read_as_shown(user: Path) -> None:
    example = next(block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "net.onnx" in block)
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 4, 3), relu=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(144, 10))
    )
    exec(example, {"net": network.eval()})
    for name, layer in (("net.pt2", "fc:input"), ("net.ts", ":output"), ("net.onnx", "node_linear:input")):
        output = call(next(command for command in COMMANDS if command.endswith(name)))
        assert layer in output
        assert "1x8x8" in output


def test_torchvision_and_timm_take_your_weights(user: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"in_channels": 1, "image_size": 32, "num_classes": 7}
    torch.save(build_architecture("torchvision:resnet18", **shape).state_dict(), "resnet18.pth")
    save_file(build_architecture("timm:test_vit", **shape).state_dict(), "vit.safetensors")
    for file in ("resnet18.pth", "vit.safetensors"):
        output = call(next(command for command in COMMANDS if file in command))
        assert "1x32x32" in output
        assert re.search(r"classes +7\n", output)
        assert "trained with another one, set teacher.source.mean and std" in output


@pytest.mark.parametrize("command", [command for command in COMMANDS if is_download(command)])
def test_published_weights_say_what_to_do_without_a_network(
    user: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(user / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(user / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "pass the file as --weights" in call(command, code=2)


def test_settings_that_are_named_exist() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    sections = "|".join(params)
    names = set(re.findall(rf"\b((?:{sections})\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)", DOCUMENT)) - {"data.md"}
    assert {"teacher.source.weights_key", "distillation.start", "statistics.source"} <= names
    for name in names:
        found: Any = params
        for part in name.split("."):
            assert part in found, name
            found = found[part]


def test_symptoms_are_what_the_messages_say() -> None:
    table = DOCUMENT.split("## Troubleshooting")[1]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(quoted) > 8
    code = "".join(path.read_text() for path in (ROOT / "dfkd_core").rglob("*.py"))
    # A message goes on over lines of code.
    text = re.sub(r'"\s*f?"', "", code)
    for symptom in quoted:
        for words in re.split(r"\s*[….:,()]+\s*|\d+", symptom):
            assert words.strip() in text, symptom


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", DOCUMENT)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_command_is_covered() -> None:
    others = ("dfkd run", "dfkd export", "net.pt2", "net.ts", "net.onnx", "resnet18.pth", "vit.safetensors")
    for command in COMMANDS:
        known = local(command) or is_download(command) or is_mlflow(command)
        assert known or any(word in command for word in others), command


@pytest.fixture(scope="module")
def workspace(make_workspace: Any, written: Path) -> Any:
    """A clone of the repository with the user's files in it."""
    made = make_workspace("teachers")
    subprocess.run(["cp", "-r", *(str(path) for path in written.iterdir()), str(made.path)], check=True)
    return made


@pytest.mark.slow
def test_models_of_mlflow_are_teachers(workspace: Any) -> None:
    (workspace.path / "log_models.py").write_text(LOG_MODELS)
    run_id = workspace.run("python", "log_models.py").splitlines()[-1].removeprefix("run ")
    own, run, pickled = (command.replace("RUN_ID", run_id) for command in filter(is_mlflow, COMMANDS))
    for command in (own, run, pickled):
        output = workspace.run("dfkd", *options_of(command))
        assert "1x8x8" in output
        assert "fc2:input" in output
    refused = workspace.run("dfkd", *options_of(pickled.removesuffix(" --trust-pickle")), code=1)
    assert "holds more than tensors" in refused


@pytest.mark.slow
def test_a_run_end_to_end_notices_other_weights_and_then_nothing(workspace: Any, small: dict[str, Any]) -> None:
    run, student, *others = [command for command in COMMANDS if command.startswith("dfkd run")]
    assert not others
    tiny = [part for name, value in small.items() if name != "data.dataset" for part in ("--set", f"{name}={value}")]
    first = workspace.run("dfkd", *options_of(run), *tiny)
    assert "Registered dfkd-student-file-test.npz version 1" in first
    assert workspace.read_json("metrics/default.json")["teacher"]["accuracy"] > 0.9
    params = yaml.safe_load((workspace.path / "params.yaml").read_text())
    assert params["teacher"]["source"]["sha256"]
    assert "Nothing has changed" in workspace.run("dfkd", "run")

    before = workspace.read_lock()
    state = torch.load(workspace.path / "ckpt.pth")
    state["model"]["fc2.bias"] += 0.1
    torch.save(state, workspace.path / "ckpt.pth")
    second = workspace.run("dfkd", "run")
    assert "Changed: teacher" in second
    assert all(workspace.read_lock()[stage] != before[stage] for stage in ("teacher", "synthesize", "distill"))
    assert "Nothing has changed" in workspace.run("dfkd", "run")

    third = workspace.run("dfkd", *options_of(student))
    assert re.search(r"first weights +pruned teacher", third)
    assert "Changed: distill" in third
    export = next(command for command in COMMANDS if command.startswith("dfkd export"))
    workspace.run("dfkd", *options_of(export))
    assert (workspace.path / "exported" / "model.onnx").is_file()
