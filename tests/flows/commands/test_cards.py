"""The cards of an export, as Hugging Face's own package reads them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from dfkd_core.common.compute import CPU
from dfkd_core.common.digests import canonical_json, file_sha256
from dfkd_core.data.datasets import DataConfig
from dfkd_core.evaluation.comparison import EvaluationConfig
from dfkd_core.export.run import probe_images
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import load_model, model_digest, save_model
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard
from dfkd_flows.cli import app
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles, reference
from dfkd_tasks.records.history import write_start
from dfkd_tasks.stages.evaluation import make_evaluation

TEACHER, STUDENT = TeacherFiles("default"), StudentFiles("default")
NAMES = ("zero", "a|b", "<script>", "`three`", "[four](http://x)", "five\n# six", "&lt;6&gt;", "\u202e7", "8", "9")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def store_results(dataset: str) -> dict[str, Any]:
    """Store a teacher, a student, a transfer set and the figures of an evaluation, and return these."""
    text = Path("params.yaml").read_text().replace("dataset: fashion_mnist", f"dataset: {dataset}")
    Path("params.yaml").write_text(text.replace('dataset: ""', "dataset: digits"))
    for seed, network, folder in ((0, "lenet5", TEACHER.network), (1, "lenet5_half", STUDENT.network)):
        card = ModelCard(
            network=network, in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.4,), layer="fc1",
            class_names=NAMES,
        )  # fmt: skip
        save_model(folder, build_classifier(card, seed=seed))
    write_start(STUDENT.network, "pruned", ["a note | with a mark"])
    images, teacher = probe_images((1, 32, 32)), load_model(TEACHER.network)
    with torch.no_grad():
        logits = teacher(images / 255)
    shard = Shard(
        images=images, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(len(images))
    )
    write_manifest(
        TEACHER.transfer_set, method="soft_target",
        method_config=json.loads(canonical_json(SynthesisConfig())), temperature=1.0,
        teacher_digest=model_digest(teacher), statistics_digest=None, code_version="", seed=7,
        shards=[write_shard(TEACHER.transfer_set / shard_name(0), shard)],
    )  # fmt: skip
    make_evaluation.fn(
        reference(TEACHER.network), reference(STUDENT.network), DataConfig(dataset=dataset),
        EvaluationConfig(num_held_out_images=50), folder=str(STUDENT.reports), compute=CPU,
    )  # fmt: skip
    STUDENT.metrics.parent.mkdir()
    (STUDENT.reports / "metrics.json").rename(STUDENT.metrics)
    return dict(json.loads(STUDENT.metrics.read_text()))


def export(*arguments: str) -> tuple[str, str]:
    """Export with cards and return their texts."""
    result = call("export", "--out", "exported", "--format", "safetensors", "--card", *arguments)
    assert result.exit_code == 0, result.output
    return Path("exported/README.md").read_text(), Path("exported/TRANSFER_SET.md").read_text()


def fields(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_model_card__has_the_figures_of_the_run_to_the_digit(project: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    metrics = store_results("digits")
    text, _ = export()
    card = huggingface_hub.ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("dfkd", "image-classification")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name: metrics["student"][name] for name in ("accuracy", "ece", "agreement", "kl")}
    assert {(result.dataset_name, result.task_type) for result in card.data.eval_results} == {
        ("digits", "image-classification")
    }
    for model in ("teacher", "student"):
        for value in metrics[model].values():
            assert f"| {value} " in text
    assert f"Measured on the {metrics['num_images']} labelled images of digits" in text
    assert "**without any of its training data**" in text
    assert "proxy" not in text
    assert f"manifest `{file_sha256(TEACHER.transfer_set / 'manifest.json')}`" in text
    assert "The student started as a smaller copy of the teacher" in text
    with (STUDENT.reports / "per_class.csv").open(newline="") as stream:
        of_teacher, of_student = max(
            ((row["teacher_accuracy"], row["student_accuracy"]) for row in csv.DictReader(stream)),
            key=lambda shares: float(shares[0]) - float(shares[1]),
        )
    assert f"its accuracy is {of_student}, the teacher's {of_teacher}" in text
    # An export with cards is one of the earlier exports that may be replaced.
    assert export()[0] == text


def test_names_from_outside__are_shown_as_they_are(project: Path) -> None:
    store_results("digits")
    text, of_set = export()
    for shown in (text, of_set):
        body = shown.split("---\n", 2)[2]
        assert "a\\|b" in body
        assert "\\<script\\>" in body
        assert "\\&lt;6\\&gt;" in body
        assert "?7" in body
        assert "\n# six" not in body
        assert "[four](" not in body
    assert "a note \\| with a mark" in text


def test_without_labels__the_card_is_of_a_proxy(project: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    metrics = store_results("none")
    text, _ = export()
    card = huggingface_hub.ModelCard(text)
    assert {result.dataset_name for result in card.data.eval_results} == {"50 synthetic images (proxy)"}
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name: metrics["proxy"][name] for name in ("agreement", "kl")}
    assert "**These figures are a proxy.**" in text
    assert "It was not evaluated on real images." in text
    assert "accuracy is" not in text


def test_set_card__has_the_figures_of_the_manifest(project: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    store_results("digits")
    _, text = export()
    manifest = json.loads((TEACHER.transfer_set / "manifest.json").read_text())
    card = huggingface_hub.DatasetCard(text)
    assert card.data.task_categories == ["image-classification"]
    assert card.data.size_categories == ["n<1K"]
    for name in ("num_images", "seed", "mean_confidence", "target_agreement"):
        assert f"| {manifest[name]} |" in text or f"| {manifest[name]} of 1x32x32 |" in text
    assert "two public photographs" in text
    assert f"| zero | {manifest['class_histogram'][0]} |" in text


@pytest.mark.parametrize(
    "format", ["webdataset", *(pytest.param(name, marks=pytest.mark.slow) for name in ("imagefolder", "parquet"))]
)
def test_an_exported_set__has_a_card_that_names_its_files(project: Path, format: str) -> None:
    store_results("digits")
    result = call("export-set", "--format", format, "--out", "set")
    assert result.exit_code == 0, result.output
    assert "Made" in result.output
    (config,) = fields(Path("set/README.md").read_text())["configs"]
    (split,) = config["data_files"]
    assert [path for path in Path("set").glob(split["path"]) if path.is_file() or format == "imagefolder"]
    again = call("export-set", "--format", format, "--out", "set")
    assert again.exit_code == 2
    assert "is not empty. Give a new or an empty folder" in again.output


@pytest.mark.parametrize("format", ["webdataset", "imagefolder", "parquet"])
def test_the_card__shows_datasets_where_the_files_are(project: Path, tmp_path: Path, format: str) -> None:
    datasets = pytest.importorskip("datasets")
    store_results("digits")
    assert call("export-set", "--format", format, "--out", "set").exit_code == 0
    read = datasets.load_dataset(str(Path("set").resolve()), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(read) == 256
    assert {"image", "label", "logits"} <= {*read.features} or {"png", "cls", "logits.npy"} <= {*read.features}


def _lose_metrics() -> None:
    STUDENT.metrics.unlink()


def _damage_metrics() -> None:
    STUDENT.metrics.write_text('{"teacher": {}}')


def _lose_set() -> None:
    (TEACHER.transfer_set / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("harm", "arguments", "code", "message"),
    [
        (_lose_metrics, [], 1, "There are no results yet: metrics/default.json is missing"),
        (_damage_metrics, [], 1, "metrics/default.json is damaged: it has no student, num_images"),
        (_lose_set, [], 1, "No transfer set in"),
        (lambda: None, ["--student", "artifacts/students/default"], 2, "--card needs the figures of a run"),
    ],
)
def test_without_results__one_message_and_nothing_made(
    project: Path, harm: Callable[[], None], arguments: list[str], code: int, message: str
) -> None:
    store_results("none")
    harm()
    result = call("export", "--out", "exported", "--card", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not Path("exported").exists()


def test_set_formats__in_the_message(project: Path) -> None:
    result = call("export-set", "--format", "tfrecord", "--out", "set")
    assert result.exit_code == 2
    assert "No format 'tfrecord'. Formats: webdataset, imagefolder, parquet" in result.output


@pytest.mark.slow
def test_of_a_real_run__and_not_of_one_that_is_out_of_date(make_workspace: Any, small: dict[str, Any]) -> None:
    workspace = make_workspace("cards")
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    workspace.run("dfkd", "run", *settings)
    card = ["dfkd", "export", "--card", "--format", "safetensors", "--out"]
    workspace.run(*card, "exported")
    text = (workspace.path / "exported" / "README.md").read_text()
    metrics = workspace.read_json("metrics/default.json")
    (entry,) = fields(text)["model-index"]
    (result,) = entry["results"]
    assert {each["type"]: each["value"] for each in result["metrics"]} == {
        name: metrics["student"][name] for name in ("accuracy", "ece", "agreement", "kl")
    }
    assert "unknown" not in text
    params = workspace.path / "params.yaml"
    params.write_text(params.read_text().replace("temperature: 4.0", "temperature: 3.0"))
    output = workspace.run(*card, "again", code=1)
    assert "The figures for the card are older than what they depend on: distill" in output
    assert not (workspace.path / "again").exists()
