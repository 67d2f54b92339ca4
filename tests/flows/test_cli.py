from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", ["run", "tune", "stage", "synthesize", "verify", "export", "show", "doctor"])
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


def test_outside_of_a_project__says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("show")
    assert result.exit_code == 2
    assert "No dvc.yaml and params.yaml in" in result.output


def test_debug__shows_the_traceback(project: Path) -> None:
    result = call("show", "--debug")
    assert result.exception is not None
    assert "There are no results yet" in str(result.exception)
