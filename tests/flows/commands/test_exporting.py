"""`dfkd export` as a user calls it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from dfkd_core.data.datasets import DataConfig, dataset_spec, load_dataset
from dfkd_core.evaluation.metrics import confusion_matrix
from dfkd_core.export.forms import read_pt2
from dfkd_core.export.run import probe_images
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import load_model, model_digest, save_model
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard
from dfkd_flows.cli import app

SPEC = dataset_spec("digits")
STUDENT = Path("artifacts/students/default")
TRANSFER_SET = Path("artifacts/teachers/default/transfer_set")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments])


def store_student(folder: Path, class_names: tuple[str, ...] = SPEC.class_names) -> None:
    card = ModelCard(
        network="lenet5_half", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.4,), layer="fc1",
        class_names=class_names,
    )  # fmt: skip
    save_model(folder, build_classifier(card, seed=0).eval())


def store_transfer_set(folder: Path, image_size: int = 32) -> None:
    images = probe_images((1, image_size, image_size))
    flat = torch.full((len(images), 10), 0.1)
    shard = Shard(images=images, teacher_logits=flat, soft_targets=flat.clone(), image_index=torch.arange(len(images)))
    write_manifest(
        folder, method="noise", method_config={}, temperature=1.0, teacher_digest="", statistics_digest=None,
        code_version="", seed=0, shards=[write_shard(folder / shard_name(0), shard)],
    )  # fmt: skip


def test_all_formats__are_made_and_told(project: Path) -> None:
    store_student(STUDENT)
    result = call("--out", "exported")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    files = ["model.safetensors", "model.pt2", "model.onnx"]
    assert lines[:3] == [f"Making and checking {file} ..." for file in files]
    assert [line.split()[0] for line in lines[4:-1]] == files
    assert all("100.00%" in line for line in lines[4:-1])
    assert "export.json" in lines[-1]
    assert not [path for path in project.iterdir() if path.name.startswith(".exported")]
    assert model_digest(load_model(project / "exported")) == model_digest(load_model(STUDENT))


def test_int8__is_calibrated_on_the_transfer_set_and_scored_on_the_test_images(project: Path) -> None:
    text = Path("params.yaml").read_text().replace("dataset: fashion_mnist", "dataset: digits")
    Path("params.yaml").write_text(text)
    store_student(STUDENT)
    store_transfer_set(TRANSFER_SET)
    result = call("--out", "exported", "--int8", "--format", "pt2", "--bake-preprocessing")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("exported/export.json").read_text())
    assert (report["num_checked_images"], report["num_calibration_images"]) == (128, 128)
    test = load_dataset(DataConfig(dataset="digits"), "test")
    with torch.no_grad():
        logits = read_pt2(Path("exported/model_int8.pt2"))(test.images / 255)
    accuracy = confusion_matrix(logits, test.labels).diagonal().sum().item() / len(test)
    int8 = next(form for form in report["forms"] if form["precision"] == "int8")
    assert int8["accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.2%}" in result.output
    assert f"{report['student_accuracy']:.2%}" in result.output


def test_int8__of_other_classes_is_not_scored(project: Path) -> None:
    store_student(Path("mine"), class_names=tuple("abcdefghij"))
    store_transfer_set(Path("set"))
    result = call("--student", "mine", "--out", "exported", "--int8", "--transfer-set", "set", "--format", "pt2")
    assert result.exit_code == 0, result.output
    assert "accuracy not measured: the student's classes are not those of fashion_mnist" in result.output
    assert json.loads(Path("exported/export.json").read_text())["student_accuracy"] is None


def test_int8__that_agrees_too_little_leaves_the_other_forms_and_ends_with_exit_code_1(project: Path) -> None:
    store_student(STUDENT)
    student = load_model(STUDENT)
    with torch.no_grad():
        # A mean of zero for each logit: close decisions, some of which rounding changes.
        student.network.get_parameter("fc2.bias").sub_(student(probe_images((1, 32, 32)) / 255).mean(0))
    save_model(STUDENT, student)
    store_transfer_set(TRANSFER_SET)
    result = call("--out", "exported", "--int8", "--format", "pt2", "--min-agreement", "1")
    made = json.loads(Path("exported/export.json").read_text())
    assert result.exit_code == 1, result.output
    assert "model_int8.pt2 predicts the student's class for" in result.output
    assert [form["file"] for form in made["forms"]] == ["model.pt2"]
    assert [failure["file"] for failure in made["failures"]] == ["model_int8.pt2"]
    assert Path("exported/model.pt2").is_file()
    assert not Path("exported/model_int8.pt2").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "tflite"], 2, "No format 'tflite'. Formats: safetensors, pt2, onnx"),
        (["--min-agreement", "nan"], 2, "--min-agreement must be from 0 to 1, got nan"),
        (["--min-agreement", "90"], 2, "--min-agreement must be from 0 to 1, got 90.0"),
        (["--student", "mine", "--int8"], 2, "--int8 needs images to calibrate on. Give the student's: --transfer-set"),
        (["--int8"], 1, "No transfer set in artifacts/teachers/default/transfer_set"),
        (["--transfer-set", "small"], 1, "have shape (1, 8, 8) and the student takes (1, 32, 32)"),
        (["--format", "safetensors", "--int8", "--transfer-set", "set"], 2, "Add: --format pt2"),
    ],
)
def test_bad_input__one_message_and_nothing_made(project: Path, arguments: list[str], code: int, message: str) -> None:
    for folder in (STUDENT, Path("mine")):
        store_student(folder)
    store_transfer_set(Path("set"))
    store_transfer_set(Path("small"), image_size=8)
    result = call("--out", "exported", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not Path("exported").exists()
