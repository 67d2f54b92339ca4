"""What would stop a run after hours is reported before it starts, and before params.yaml changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dfkd_core.errors import DfkdError
from dfkd_flows.cli import app
from dfkd_flows.run.ready import check_ready
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import parse_params
from dfkd_tasks.caching.workspace import WORK, TeacherFiles


@pytest.fixture(autouse=True)
def _project(project: Path) -> None:
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    remote = local\n['remote \"local\"']\n    url = ../store\n")


def with_images(count: float) -> Params:
    return parse_params({"data": {"dataset": "digits"}, "synthesis": {"num_images": count}}, source="test")


def test_check_ready__changes_nothing() -> None:
    before = sorted(Path().rglob("*"))
    check_ready(Params())
    assert sorted(Path().rglob("*")) == [Path(".dfkd"), *before] or sorted(Path().rglob("*")) == before


def test_check_ready__a_set_that_does_not_fit_on_the_disk() -> None:
    free = shutil.disk_usage(".").free
    check_ready(with_images(free // 1024 // 2))
    with pytest.raises(
        DfkdError, match=r"images need .* MiB more, and .* MiB are free\. Free some space, or make fewer"
    ):
        check_ready(with_images(free // 1024 * 2))


def test_check_ready__shards_that_are_made_already_need_no_space() -> None:
    free = shutil.disk_usage(".").free
    shards = (TeacherFiles("default").transfer_set, WORK / "synthesize" / "0")
    for folder in shards:
        folder.mkdir(parents=True)
        with (folder / "shard-0").open("wb") as stream:
            # Sparse: as large as the disk, without its blocks.
            stream.truncate(free)
    check_ready(with_images(free // 1024 * 2))


def test_run__in_a_project_without_one_of_its_files_names_it() -> None:
    Path("dvc.yaml").unlink()
    result = CliRunner().invoke(app, ["run"])
    assert result.exit_code == 2
    assert f"{Path.cwd()} has no file dvc.yaml. Restore it with: git -C {Path.cwd()} checkout dvc.yaml" in result.output
    Path("params.yaml").unlink()
    Path("params.yaml").mkdir()
    assert "has no file dvc.yaml and params.yaml." in CliRunner().invoke(app, ["show"]).output


def test_run__with_a_project_that_is_not_ready_leaves_params_as_they_were() -> None:
    Path("mlflow.db").write_text("half")
    before = Path("params.yaml").read_bytes()
    result = CliRunner().invoke(app, ["run", "--preset", "digits"])
    assert (result.exit_code, "mlflow.db is damaged" in result.output) == (1, True), result.output
    assert Path("params.yaml").read_bytes() == before


def test_check_ready__lists_all_faults() -> None:
    Path("mlflow.db").write_text("half")
    Path("dvc.yaml").write_text("<<<<<<< HEAD\n")
    Path(".dvc/config").write_text("[core]\n    remote = gone\n")
    Path("reports").touch()
    with pytest.raises(DfkdError) as caught:
        check_ready(Params())
    lines = str(caught.value).splitlines()
    for start in (
        "Results cannot be written",
        "dvc.yaml, line 1",
        "DVC's default remote 'gone'",
        "mlflow.db is damaged",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, lines
    assert len(lines) == 4
