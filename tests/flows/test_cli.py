import json
import tempfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard
from dfkd_flows.cli import app
from dfkd_tasks.caching.code import PACKAGES


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "tune",
        "stage",
        "synthesize",
        "verify",
        "export",
        "export-set",
        "calibrate",
        "push",
        "show",
        "doctor",
        "init",
    ],
)
def test_help__ends_in_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"dfkd {command}" in result.output.split("Example")[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--set", "synthesis.num_images=0"], 2, "synthesis.num_images: input should be greater than"),
        (["run", "--set", "synthesis.nun_images=9"], 2, "did you mean synthesis.num_images?"),
        (["run", "--preset", "quick"], 2, "Presets: best, default, digits, fast"),
        (
            ["tune", "--minutes", "0"],
            2,
            "--minutes must be a number greater than 0, got 0. Try: dfkd tune --minutes 10",
        ),
        (["tune", "--minutes", "nan"], 2, "--minutes must be a number greater than 0, got nan"),
        (["tune", "--trials", "0"], 2, "--trials must be at least 1, got 0"),
        (
            ["tune", "--set", "synthesis.methods.soft_target.refinement.prior=mosaic"],
            2,
            "Choose another, for example: --set synthesis.methods.soft_target.refinement.prior=mixed",
        ),
        (["stage", "train"], 2, "Stages: teacher, statistics, synthesize, distill, evaluate"),
        (["show"], 1, "Make them with: dfkd run"),
        (["verify"], 1, "config.json is missing"),
        (["verify", "nowhere"], 1, "No transfer set in"),
        (["synthesize", "--teacher", "nowhere", "--out", "presets"], 2, "Give a new or an empty folder"),
        (["synthesize", "--teacher", "nowhere", "--out", "new"], 1, "No model in"),
        (
            ["synthesize", "--teacher", "nowhere", "--out", "params.yaml"],
            2,
            "params.yaml is not a folder. Give another",
        ),
        (["export", "--out", "params.yaml/new"], 2, "params.yaml is not a folder. Give another folder"),
        (["export", "--out", "new", "--format", "tflite"], 2, "No format 'tflite'. Formats: safetensors, pt2, onnx"),
        (["export", "--out", "new", "--min-agreement", "2"], 2, "--min-agreement must be from 0 to 1, got 2"),
        (
            ["export", "--out", "presets"],
            2,
            "presets exists and is not an earlier export. Give a new or an empty folder",
        ),
        (["export", "--out", "new", "--student", "new"], 2, "is the student's own folder"),
        (["export", "--out", "new"], 1, "No model in artifacts/students/default: config.json is missing"),
    ],
)
def test_bad_input__one_message_and_no_traceback(project: Path, arguments: list[str], code: int, message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 3


def test_bad_params_file__lists_all_faults(project: Path) -> None:
    Path("params.yaml").write_text("seed: -1\nteacher: {epoch: 3}\n")
    result = call("run")
    assert result.exit_code == 2
    assert "2 faults in params.yaml" in result.output
    assert "seed: " in result.output
    assert "teacher.epoch: unknown key; did you mean teacher.epochs?" in result.output


def test_outside_of_a_project__what_needs_none_works_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for folder in (here, temporary):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    card = ModelCard(
        network="my_cli_net:make", in_channels=1, image_size=8, num_classes=4, mean=(0.5,), std=(0.5,), layer=":output"
    )
    network = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))"
    Path("my_cli_net.py").write_text(f"import torch\n\n\ndef make() -> torch.nn.Module:\n    return {network}\n")
    save_model(here / "student", build_classifier(card, seed=0))
    # Of another tool that uses DVC too.
    Path("dvc.yaml").write_text("stages:\n  mine:\n    cmd: echo\n")
    Path("params.yaml").write_text("lr: 0.1\n")
    before = sorted(here.iterdir())
    for arguments, text in (
        (["layers", "--teacher", "student", "--trust-factory", "my_cli_net:make"], "* is used"),
        (["export", "--student", "student", "--trust-factory", "my_cli_net:make", "--out", "../out", "--format",
          "safetensors"], "Made"),
    ):  # fmt: skip
        result = call(*arguments)
        assert (result.exit_code, text in result.output) == (0, True), result.output
        # The user's word holds for one command.
        refused = call(*(part for part in arguments if part not in ("--trust-factory", "my_cli_net:make")))
        assert "--trust-factory my_cli_net:make" in refused.output
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before
    assert list(temporary.glob("dfkd-*")) == []
    assert call("verify", "student").exit_code == 1


def test_a_folder_of_dvc_without_dvc_yaml__is_an_incomplete_project_only_with_files_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    assert "is in no project" in call("show").output
    Path("params.yaml").write_text("seed: 0\n")
    assert f"has no file dvc.yaml. Restore it with: git -C {tmp_path} checkout dvc.yaml (or: dfkd init {tmp_path})" in (
        call("show").output
    )


def test_debug__shows_the_traceback(project: Path) -> None:
    result = call("show", "--debug")
    assert result.exception is not None
    assert "There are no results yet" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--student", ""],
        ["run", "--teacher", " "],
        ["run", "--teacher", "lenet5", "--weights", ""],
        ["run", "--preset", ""],
        ["tune", "--preset", ""],
        ["synthesize", "--teacher", "", "--out", "new"],
        ["synthesize", "--teacher", "nowhere", "--out", ""],
        ["synthesize", "--teacher", "nowhere", "--out", "new", "--statistics", ""],
        ["verify", ""],
        ["verify", "--teacher", ""],
        ["inspect", "--teacher", ""],
        ["layers", "--weights", ""],
        ["export", "--out", ""],
        ["export", "--out", "new", "--student", ""],
        ["export", "--out", "new", "--transfer-set", ""],
        ["export-set", "--out", "", "--format", "parquet"],
        ["export-set", "", "--out", "new", "--format", "parquet"],
        ["calibrate", "", "--out", "calib.npz"],
        ["push", "", "--hub", "me/small"],
        ["push", "new", "--hub", ""],
    ],
)
def test_an_empty_value__is_refused_by_the_name_of_its_option(project: Path, arguments: list[str]) -> None:
    before = Path("params.yaml").read_text()
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "it is empty. Give a value, or leave the option out" in result.output
    assert Path("params.yaml").read_text() == before


def test_synthesize__leaves_a_folder_that_is_not_a_transfer_set(project: Path) -> None:
    Path("photos").mkdir()
    Path("photos/manifest.json").write_text('{"name": "an album"}')
    Path("photos/1.jpg").write_text("mine")
    result = call("synthesize", "--teacher", "nowhere", "--out", "photos")
    assert result.exit_code == 2
    assert "photos is not empty, and " in result.output
    assert "Give a new or an empty folder" in result.output
    assert sorted(path.name for path in Path("photos").iterdir()) == ["1.jpg", "manifest.json"]


def test_verify__a_whole_set_of_somebody_elses_settings(project: Path) -> None:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    logits = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    shard = Shard(images=images, teacher_logits=logits, soft_targets=logits, image_index=torch.arange(4))
    write_manifest(
        Path("set"), method="mine", method_config={"a": 1}, temperature=1.0, teacher_digest="", statistics_digest=None,
        code_version="", seed=0, shards=[write_shard(Path("set") / shard_name(0), shard)],
    )  # fmt: skip
    result = call("verify", "set")
    assert result.exit_code == 0, result.output
    assert "set is whole: 4 images in 1 shard by mine" in result.output
    assert "Note: classes 0, 1 have 100.0 %, 0.0 % of the images" in result.output


@pytest.mark.parametrize("name", ["../../../etc/passwd", "shard-00000.safetensors"])
def test_verify__refuses_a_set_in_one_sentence(project: Path, name: str) -> None:
    Path("set").mkdir()
    record = {"file": name, "num_images": 4, "sha256": "0" * 64}
    manifest = {
        "format_version": 2, "method": "noise", "method_config": {}, "temperature": 1.0, "teacher_digest": "",
        "statistics_digest": None, "code_version": "", "seed": 0, "num_images": 4, "image_shape": [1, 8, 8],
        "num_classes": 2, "class_histogram": [4, 0], "mean_confidence": 1.0, "target_agreement": 1.0,
        "shards": [record],
    }  # fmt: skip
    Path("set/manifest.json").write_text(json.dumps(manifest))
    result = call("verify", "set")
    assert result.exit_code == 1
    assert "shard" in result.output
    assert "Make it again: dfkd" in result.output
    assert "is whole" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_version__names_the_code_that_runs_and_needs_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("--version")
    assert result.exit_code == 0, result.output
    assert f"torch {torch.__version__}" in result.output
    assert result.output.endswith(f"code in {PACKAGES.parent}\n")
    assert list(tmp_path.iterdir()) == []


def test_completion__completes_commands_and_options() -> None:
    for words, word in (("dfkd in", "inspect"), ("dfkd export --tr", "--transfer-set")):
        asked = {"_DFKD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(app, [], prog_name="dfkd", env=asked)
        assert word in result.output.split()
