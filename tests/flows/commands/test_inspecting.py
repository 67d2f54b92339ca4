from pathlib import Path

from typer.testing import CliRunner

from dfkd_flows.cli import app

QUICK = ["--set", "synthesis.batch_size=8", "--set", "statistics.num_probes=8", "--set", "teacher.source.image_size=32"]


def inspect(*options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["inspect", *options, *QUICK])
    assert result.exit_code == code, result.output
    return result.output


def test_an_untrained_teacher_is_a_warning_of_its_own(project: Path) -> None:
    output = inspect("--teacher", "lenet5@0.5", "--set", "teacher.source.mean=0.5")
    assert "mean (0.5), std (1)" in output
    assert output.rstrip().endswith(
        "Warning: no weights are given, and the network draws them at random, so it is untrained. Set --weights"
    )
    assert "warning" not in output.partition("Detected and assumed:")[2].partition("Warning:")[0]


def test_a_folder_without_a_model_names_both_options(project: Path) -> None:
    (project / "empty").mkdir()
    output = inspect("--teacher", "empty", code=2)
    assert "it has: nothing. Name the architecture as --teacher and the file or the folder of its weights" in output
