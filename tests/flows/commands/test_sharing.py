"""`dfkd share` with real git and DVC, in a project whose stages only write a line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dvc.api
import pytest
import yaml
from typer.testing import CliRunner, Result

from dfkd_flows.cli import app
from dfkd_flows.project.pipeline_text import checkout_pipeline
from dfkd_flows.settings.file_text import params_text
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.code import PACKAGES

# Of packages that DVC uses.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
CONFIG = "[core]\n    remote = local\n['remote \"local\"']\n    url = ../.dvc-store\n"
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")
ENVIRONMENT = {"PYTHONPATH": str(PACKAGES), "GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "true"}


def written_pipeline() -> str:
    """Return dvc.yaml with the outputs of the real stages, each a folder or a file with a line."""
    content = yaml.safe_load(checkout_pipeline())
    for name, group in content["stages"].items():
        outs = group["do"]["outs"]
        made = " && ".join(
            f"mkdir -p {out} && echo {name} > {out}/model.txt" if out.startswith("artifacts")
            else f"mkdir -p $(dirname {out}) && echo {name} > {out}"
            for out in outs
        )  # fmt: skip
        group["do"] = {"cmd": made, "outs": outs}
    return yaml.safe_dump({"stages": content["stages"], "artifacts": content["artifacts"]}) + "# dfkd\n"


def git(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], check=True, capture_output=True, text=True, cwd=cwd)
    return done.stdout


def run_dvc(*arguments: str, cwd: Path | None = None) -> None:
    program = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(program, check=True, capture_output=True, cwd=cwd, env={**os.environ, **ENVIRONMENT})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a project in a subfolder of a git repository, whose stages have run."""
    folder = tmp_path_factory.mktemp("shared")
    project = folder / "repository" / "sub"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc" / "config").write_text(CONFIG)
    (project / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (project / ".gitignore").write_text("/.dfkd/\n/.dvc-store/\n/artifacts/\n/metrics/\n/reports/\n*.pth\n")
    (project / "params.yaml").write_text(params_text(Params()))
    (project / "dvc.yaml").write_text(written_pipeline())
    git("init", "--quiet", cwd=project.parent)
    run_dvc("repro", "--quiet", cwd=project)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a copy of the project."""
    shutil.copytree(made, tmp_path / "place", symlinks=True)
    project = tmp_path / "place" / "repository" / "sub"
    for name, value in {**ENVIRONMENT, "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project)
    return project


def share(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["share", *arguments])


def commands(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if line.startswith("  ")]


def test_share__copies_the_results_and_names_what_git_lacks(project: Path, tmp_path: Path) -> None:
    git("remote", "add", "origin", "https://me:verysecret@host/team/our.git")
    result = share("../../store")
    assert result.exit_code == 0, result.output
    assert f"shared, {tmp_path}/place/store" in result.output
    assert "12 files with" in result.output
    added, commit, push, clone, *_ = commands(result.output)
    assert added == "git add .dvc/config .dvc/.gitignore .gitignore dvc.lock dvc.yaml params.yaml"
    assert (commit, push) == ("git commit -m 'Results of dfkd'", "git push")
    assert clone == "git clone https://host/team/our.git && cd our/sub"
    assert "verysecret" not in result.output


@pytest.mark.slow
def test_shared_project__is_fetched_by_a_clone_and_in_parts_by_another_repository(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share("../../store")
    git("add", ".")
    git("commit", "--quiet", "-m", "results")
    again = share()
    assert "; 0 files were new" in again.output
    assert "git has all" not in again.output
    git("clone", "--quiet", str(project.parent), str(tmp_path / "clone"))
    clone = tmp_path / "clone" / "sub"
    run_dvc("pull", cwd=clone)
    assert (clone / "artifacts/students/default/model.txt").read_text() == "distill\n"

    git("tag", "--annotate", "-m", "first", "sub=student@v1.0.0")
    other = tmp_path / "other"
    other.mkdir()
    # dvc.api takes a path in the repository that holds the current folder for one relative to this folder.
    monkeypatch.chdir(other)
    git("init", "--quiet")
    run_dvc("init", "--quiet")
    address = str(project.parent)
    run_dvc("get", address, "sub/artifacts/students/default", "-o", "student")
    run_dvc("import", address, "sub/artifacts/teachers/default/transfer_set", "-o", "images")
    run_dvc("artifacts", "get", address, "sub:student", "-o", "named")
    assert Path("student/model.txt").read_text() == "distill\n"
    assert Path("images/model.txt").read_text() == "synthesize\n"
    assert Path("named/model.txt").read_text() == "distill\n"
    assert dvc.api.read("sub/artifacts/students/default/model.txt", repo=address) == "distill\n"


@pytest.mark.slow
def test_share__into_a_bucket_that_must_exist(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]
) -> None:
    for package in ("moto", "dvc_s3"):
        pytest.importorskip(package)
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = serve("python", "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}", page="/moto-api/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    refused = share("s3://results/dfkd")
    assert (refused.exit_code, (project / ".dvc" / "config").read_text()) == (1, CONFIG)
    assert "DVC's remote 'shared' at s3://results/dfkd cannot be written" in refused.output
    assert len(refused.output.splitlines()) == 1
    pytest.importorskip("boto3").client("s3", endpoint_url=server.url).create_bucket(Bucket="results")
    assert "shared, s3://results/dfkd" in share("s3://results/dfkd").output
    git("add", ".")
    git("commit", "--quiet", "-m", "results")
    git("clone", "--quiet", str(project.parent), str(tmp_path / "clone"))
    run_dvc("pull", cwd=tmp_path / "clone" / "sub")
    assert (tmp_path / "clone/sub/artifacts/students/default/model.txt").read_text() == "distill\n"
    server.stop()
    away = share()
    assert away.exit_code == 1
    assert "cannot be written" in away.output


def remove_git(project: Path) -> None:
    shutil.rmtree(project.parent / ".git")


def remove_results(project: Path) -> None:
    (project / "dvc.lock").unlink()


def make_older(project: Path) -> None:
    (project / "reports/students/default/predictions.safetensors").unlink()


def set_another(project: Path) -> None:
    (project / ".dvc" / "config").write_text("[core]\n    remote = far\n['remote \"far\"']\n    url = s3://ours/x\n")


def set_local(project: Path) -> None:
    (project / ".dvc" / "config.local").write_text(
        "[core]\n    remote = far\n['remote \"far\"']\n    url = s3://ours/x\n"
    )


def add_password(project: Path) -> None:
    (project / ".dvc" / "config").write_text(f"{CONFIG}    password = verysecret\n")


def add_password_to_address(project: Path) -> None:
    (project / ".dvc" / "config").write_text(CONFIG.replace("../.dvc-store", "ssh://me:verysecret@h/x"))


def damage(project: Path) -> None:
    (project / ".dvc" / "config").write_text("[core\n")


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        (remove_git, ("/tmp/x",), "is in no git repository, from which colleagues clone. Make one with: git init"),
        (remove_results, ("/tmp/x",), "There are no results yet. Make them with: dfkd run"),
        (make_older, ("../../store",), "The results are older than what they depend on: evaluate"),
        (None, (), "is a folder of this project, which no colleague sees. Name a place"),
        (None, ("--remote", "x"), "There is no remote 'x' in .dvc/config. Give its address: dfkd share URL --remote x"),
        (None, ("../../store", "--remote", "a b"), "--remote takes letters, digits"),
        (None, ("inside",), "is in this project, where no colleague sees it"),
        (None, ("/proc/none",), "cannot be written"),
        (None, ("params.yaml/x",), "is in this project"),
        (None, ("gs2://x/y",), "Unsupported URL type gs2://"),
        (None, ("s3:/x/y",), "Write: dfkd share s3://x/y"),
        (None, ("me@host:x",), "Write: dfkd share ssh://me@host/x"),
        (None, ("a,b",), "has the character ','"),
        (None, (" ",), "it is empty"),
        (None, ("ssh://me:verysecret@host/x",), "dvc remote modify --local NAME password"),
        (None, ("https://verysecret@host/x",), "dvc remote modify --local NAME password"),
        (None, ("azure://c/x?sig=verysecret",), "dvc remote modify --local NAME password"),
        (set_another, ("../../store",), "The remote 'far' is s3://ours/x and stays"),
        (set_local, (), "set on this machine alone"),
        (add_password, ("../../store",), "dvc remote modify --unset local password"),
        (add_password_to_address, ("../../store",), "holds a password in the address"),
        (damage, ("../../store",), "cannot be read"),
    ],
)  # fmt: skip
def test_share__refuses_in_one_sentence_and_changes_nothing(
    project: Path, change: Callable[[Path], None] | None, arguments: tuple[str, ...], expected: str
) -> None:
    if change:
        change(project)
    before = (project / ".dvc" / "config").read_bytes()
    result = share(*arguments)
    assert result.exit_code in (1, 2)
    assert expected in result.output
    assert "verysecret" not in result.output
    assert "Traceback" not in result.output
    assert (project / ".dvc" / "config").read_bytes() == before
    assert not (project.parents[1] / "store").exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"weights.pth": b"-"}, "git add --force weights.pth    # git ignores them"),
        ({"large.pt": bytes(6_000_000)}, "dvc add large.pt && dvc push    # too large for git"),
    ],
)
def test_share__names_the_teachers_files_that_git_lacks(
    project: Path, files: Mapping[str, bytes], expected: str
) -> None:
    ((name, content),) = files.items()
    (project / name).write_bytes(content)
    text = (project / "params.yaml").read_text()
    for before, after in (
        ('    model: ""', "    model: torchvision:resnet18"),
        ('    weights: ""', f"    weights: {name}"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    (project / "params.yaml").write_text(text)
    found = commands(share("../../store").output)
    assert any(line.startswith(expected) and name in line for line in found), found
