"""`dfkd calibrate` as a user calls it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_flows.cli import app


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", *arguments])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a network."""
    batch = torch.export.Dim("batch")
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    program = torch.export.export(linear, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    path = tmp_path_factory.mktemp("network") / "net.pt2"
    torch.export.save(program, path)
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Path) -> str:
    """Change into a folder that is no project and holds a network as a file."""
    monkeypatch.chdir(tmp_path)
    return str(shutil.copy2(network, "net.pt2"))


def test_a_file__outside_of_a_project(model: str) -> None:
    normalisation = ["--set", "teacher.source.mean=0.5", "--set", "teacher.source.std=0.25"]
    result = call(model, "--out", "calib.npz", "--num-images", "40", *normalisation)
    assert result.exit_code == 0, result.output
    assert "Made" in result.output
    assert "float32 40x3x8x8, normalised with mean (0.5, 0.5, 0.5) and std (0.25, 0.25, 0.25)" in result.output
    with np.load("calib.npz", allow_pickle=False) as archive:
        assert archive.files == ["images"]
        images = archive["images"]
    assert images.shape == (40, 3, 8, 8)
    assert -2 <= images.min() < 0 < images.max() <= 2
    assert sorted(path.name for path in Path().iterdir()) == ["calib.npz", "net.pt2"]


def test_an_assumed_normalisation__is_noted(model: str) -> None:
    result = call(model, "--out", "new/calib.npz", "--num-images", "2")
    assert result.exit_code == 0, result.output
    assert "Note: normalisation: none given" in result.output
    assert Path("new/calib.npz").is_file()


def test_a_teacher_of_the_project__by_its_name(project: Path) -> None:
    card = ModelCard(
        network="lenet5_half", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.4,), layer="fc1"
    )
    save_model(Path("artifacts/teachers/default/network"), build_classifier(card, seed=0))
    result = call("default", "--out", "calib.npz", "--num-images", "3")
    assert result.exit_code == 0, result.output
    assert np.load("calib.npz")["images"].shape == (3, 1, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "calib.npy"], 2, "must be the name of a NumPy archive. Try: --out calib.npz"),
        (["--out", "taken.npz"], 2, "exists and is not replaced. Give another name, or delete it"),
        (["--out", "dangling.npz"], 2, "exists and is not replaced"),
        (["--out", "net.pt2/calib.npz"], 2, "net.pt2 is not a folder"),
        (
            ["--out", "calib.npz", "--num-images", "0"],
            2,
            "--num-images must be at least 1, got 0. Try: --num-images 256",
        ),
        (["--out", ""], 2, "it is empty. Give a value, or leave the option out"),
    ],
)
def test_bad_input__one_message_and_nothing_made(model: str, arguments: list[str], code: int, message: str) -> None:
    Path("taken.npz").write_text("mine")
    Path("dangling.npz").symlink_to("nowhere")
    before = sorted(Path().iterdir())
    result = call(model, *arguments)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert sorted(Path().iterdir()) == before
    assert Path("taken.npz").read_text() == "mine"


def test_a_model_that_is_none__is_named(model: str) -> None:
    result = call("nowhere.onnx", "--out", "calib.npz")
    assert result.exit_code == 2
    assert "There is no file or folder" in result.output
    assert not Path("calib.npz").exists()
