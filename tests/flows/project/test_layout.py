"""`dfkd init` in folders of all kinds: what it makes, keeps and refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo
from filelock import FileLock
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from dfkd_flows.cli import app
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.stages.command import STAGES
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.code import PACKAGES, code_digest

MADE = {
    ".dfkd", ".dvc", ".dvcignore", ".git", ".gitignore", "README.md", "code.json", "dvc.yaml", "params.yaml",
    "prefect.yaml",
}  # fmt: skip
NET = """
from torch import nn


def make_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    # A command changes the folder of its process.
    before = Path.cwd()
    try:
        return CliRunner().invoke(app, list(arguments))
    finally:
        os.chdir(before)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if "__pycache__" not in path.parts}


# Of a package that DVC uses.
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_init__in_a_new_folder_makes_a_project_that_dvc_reads(here: Path) -> None:
    result = call("init", "deep/own")
    assert result.exit_code == 0, result.output
    assert "Next: cd deep/own && dfkd run" in result.output
    assert "Made a git repository there" in result.output
    project = here / "deep/own"
    assert names(project) == MADE
    assert load_params(project / "params.yaml") == Params()
    assert json.loads((project / "code.json").read_text()) == {stage: code_digest(stage) for stage in STAGES}
    assert len((project / "README.md").read_text().splitlines()) <= 10
    with Repo(str(project)) as repo:
        found = repo.index.stages
        assert [stage.name for stage in found] == ["code", *addresses(Params())]
        assert repo.config["core"]["remote"] == "local"
        graph = repo.index.graph
        assert all(graph.has_edge(stage, found[0]) for stage in found[1:])


def test_init__twice_is_refused_and_changes_nothing(here: Path) -> None:
    assert call("init").exit_code == 0
    (here / "sub").mkdir()
    before = snapshot(here)
    for arguments in ([], [str(here)], ["."]):
        result = call("init", *arguments)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
        assert f"{here} is a project already, with dvc.yaml and params.yaml. Change its settings with" in result.output
    result = call("init", "sub/deeper")
    assert (result.exit_code, "is inside of the project" in result.output) == (2, True)
    assert snapshot(here) == before
    assert not (here / "sub/deeper").exists()


def test_init__in_a_subfolder_of_a_repository_keeps_what_is_there(here: Path) -> None:
    git("init", "-q")
    own = here / "own"
    own.mkdir()
    kept = {"README.md": "mine", "prefect.yaml": "name: mine\n", "flows/steps.py": "", "data/a.txt": "mine"}
    for name, text in kept.items():
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text(text)
    (own / ".gitignore").write_text("*.pth\n/.dfkd/")
    result = call("init", "own")
    assert result.exit_code == 0, result.output
    assert {name: (own / name).read_text() for name in kept} == kept
    assert "Kept as they were: prefect.yaml, README.md" in result.output
    assert "git repository" not in result.output
    ignored = (own / ".gitignore").read_text().splitlines()
    assert ignored[:2] == ["*.pth", "/.dfkd/"]
    assert ignored.count("/.dfkd/") == 1
    # The folder is there and may hold what belongs into git.
    assert "/data/" not in ignored
    assert "/artifacts/" in ignored
    assert names(here) == {".git", "own"}
    with Repo(str(own)) as repo:
        assert len(repo.index.stages) == 1 + len(STAGES)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dvc.yaml", "stages:\n  mine:\n    cmd: echo\n", "has another dvc.yaml"),
        ("params.yaml", "lr: 0.1\n", "lr: unknown key"),
        ("code.json", '{"mine": 1}', "has another code.json"),
        ("artifacts/teachers/x/model.txt", "mine", "has artifacts/teachers, where a run would write"),
        (".gitignore", "*.json\n*.yaml\n", "git ignores prefect.yaml, code.json, params.yaml, dvc.yaml in"),
    ],
)
def test_init__never_overwrites_what_belongs_to_somebody(here: Path, name: str, text: str, message: str) -> None:
    git("init", "-q")
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    (here / name).write_text(text)
    before = snapshot(here)
    result = call("init")
    assert result.exit_code == 2
    assert message in result.output
    assert snapshot(here) == before
    assert not (here / ".dfkd").exists()


def test_init__finishes_what_a_killed_one_began(here: Path) -> None:
    assert call("init").exit_code == 0
    whole = snapshot(here)
    for number, name in enumerate(("dvc.yaml", "params.yaml", "README.md", ".dvc/config")):
        (here / name).unlink()
        if number < 2:
            assert "dfkd init" in call("show").output
    (here / ".gitignore").write_text("/.dfkd/\n")
    # As `write_atomically` names what it has not finished.
    (here / ".dvc.yaml.0f1e2d3c").write_text("half")
    result = call("init")
    assert result.exit_code == 0, result.output
    assert snapshot(here).keys() == whole.keys()
    assert snapshot(here) == whole


def test_init__with_a_teacher_looks_at_it_and_fills_the_settings(here: Path) -> None:
    (here / "my_init_net.py").write_text(NET)
    torch.manual_seed(0)
    shapes = {"1.weight": (16, 192), "1.bias": (16,), "3.weight": (4, 16), "3.bias": (4,)}
    save_file({name: torch.randn(*shape) for name, shape in shapes.items()}, "net.safetensors")
    options = ["--teacher", "my_init_net:make_net", "--weights", "net.safetensors", "--student", "my_init_net:make_net"]
    shape = ["--set", "teacher.source.image_size=8", "--set", "teacher.source.in_channels=3"]
    start = ["--set", "distillation.start=random"]
    refused = call("init", *options[:3], "other.safetensors", *options[4:])
    assert refused.exit_code != 0
    assert names(here) - {"__pycache__"} == {"my_init_net.py", "net.safetensors"}
    result = call("init", *options, *shape, *start)
    assert result.exit_code == 0, result.output
    params = load_params(here / "params.yaml")
    assert params.teacher.source.model == params.distillation.student == "my_init_net:make_net"
    assert params.teacher.source.weights == "net.safetensors"
    assert len(params.teacher.source.sha256) == 64
    # Nobody has named labelled images.
    assert params.data.dataset == "none"


def test_run__outside_of_a_project_asks_before_it_makes_one(here: Path) -> None:
    for arguments in (["run"], ["show"], ["tune"], ["inspect"], ["export", "--out", "new"], ["verify"]):
        result = call(*arguments)
        assert result.exit_code == 2
        assert f"{here} is in no project, a folder with dvc.yaml and params.yaml" in result.output
        assert "Make one here with: dfkd init. Without a project you can use: dfkd inspect" in result.output
    result = call("run", "--teacher", "lenet5", "--student", "lenet5_half")
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
    assert "Make one here and run it with: dfkd run --yes" in result.output
    assert names(here) == set()


def test_run__on_a_terminal_makes_no_project_without_the_users_word(here: Path) -> None:
    terminal, other = pty.openpty()
    os.write(terminal, b"no\n")
    script = "from dfkd_flows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--teacher", "lenet5"],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)}, stdin=other, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for end in (terminal, other):
        os.close(end)
    assert f"{here} is in no project. Make one here (params.yaml, dvc.yaml," in done.stdout
    assert (done.returncode, done.stderr.startswith("dfkd: Nothing was written.")) == (1, True), done.stderr
    assert names(here) == set()


def test_run__with_yes_makes_a_project_and_goes_on(here: Path) -> None:
    (here / ".dfkd").mkdir()
    with FileLock(here / ".dfkd/run.lock"):
        result = call("run", "--yes", "--student", "lenet5_half", "--preset", "digits", "--set", "seed=3")
    # It got as far as the lock of a run.
    assert (result.exit_code, "Another run" in result.output) == (3, True), result.output
    assert names(here) == MADE
    params = load_params(here / "params.yaml")
    assert (params.seed, params.data.dataset, params.distillation.student) == (3, "digits", "lenet5_half")
