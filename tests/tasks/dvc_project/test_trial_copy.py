"""The copy of a project for one run with other parameters."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.workspace import WORK
from dfkd_tasks.dvc_project.trial_copy import TRIAL, trial_copy


@pytest.fixture
def filled(project: Path) -> Path:
    """Fill the project of the current folder with results, DVC's configuration and files of the user's."""
    for name in (
        "dvc.lock",
        "metrics/default.json",
        "artifacts/teachers/default/network/config.json",
        "artifacts/mine.pt",
        "images/a.png",
        "mlflow.db",
        "mlflow.db-wal",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    remote = local\n['remote \"local\"']\n    url = ../store\n")
    return project


def contents(project: Path) -> dict[str, str]:
    files = (path for path in project.rglob("*") if path.is_file() and ".dfkd" not in path.parts)
    return {str(path.relative_to(project)): path.read_text() for path in files}


def test_copy__has_results_of_its_own_and_the_files_of_the_user(filled: Path) -> None:
    before = contents(filled)
    with trial_copy():
        assert Path.cwd() == filled / TRIAL
        for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
            assert Path(name).read_text() == before[name]
            Path(name).write_text("other")
        for name in ("images/a.png", "artifacts/mine.pt"):
            assert Path(name).read_text() == before[name]
        for name in ("metrics", "artifacts/teachers", "mlflow.db", "mlflow.db-wal"):
            assert not Path(name).exists()
        Path("metrics").mkdir()
        Path("metrics/default.json").write_text("other")
    assert Path.cwd() == filled
    assert contents(filled) == before
    assert not TRIAL.exists()


def test_copy__shares_the_cache_and_needs_no_git(filled: Path) -> None:
    with trial_copy():
        found = configparser.RawConfigParser()
        found.read(".dvc/config")
    assert found["cache"]["dir"] == str(filled / ".dvc" / "cache")
    assert found["'remote \"local\"'"]["url"] == str(filled / "store")
    assert found["core"]["no_scm"] == "true"


def test_failed_run__leaves_its_finished_shards_to_the_next_one(filled: Path) -> None:
    before = contents(filled)

    def fail() -> None:
        with trial_copy():
            (WORK / "synthesize").mkdir(parents=True)
            (WORK / "synthesize/shard").write_text("made")
            Path("metrics").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert Path.cwd() == filled
    with trial_copy():
        assert (WORK / "synthesize/shard").read_text() == "made"
        assert not Path("metrics").exists()
    assert contents(filled) == before


@pytest.mark.parametrize("link", [".", ".dfkd", str(WORK), "metrics", ".dfkd/mlflow"])
def test_links_in_an_earlier_copy__are_not_followed(
    filled: Path, link: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "work").mkdir()
    for name in ("mine", "work/mine"):
        (outside / name).write_text("mine")
    place = TRIAL / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    with trial_copy():
        assert not any(path.is_symlink() for path in (Path.cwd(), Path(".dfkd"), WORK))
    assert [(outside / name).read_text() for name in ("mine", "work/mine")] == ["mine", "mine"]


def test_file_in_place_of_the_copy__gives_way(filled: Path) -> None:
    TRIAL.parent.mkdir()
    TRIAL.write_text("")
    with trial_copy():
        assert Path("params.yaml").is_file()


def test_credentials_in_the_copy__are_read_by_the_user_alone(filled: Path) -> None:
    Path(".dvc/config.local").write_text("['remote \"local\"']\n    password = secret\n")
    with trial_copy():
        assert "secret" in Path(".dvc/config").read_text()
        assert Path(".dvc/config").stat().st_mode & 0o777 == 0o600


def test_damaged_configuration_of_dvc__is_one_sentence(filled: Path) -> None:
    Path(".dvc/config").write_text("[core\n")
    with pytest.raises(DfkdError, match=r"\.dvc/config or .* cannot be read"), trial_copy():
        pass
