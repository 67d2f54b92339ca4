"""Trouble with MLflow's store is a sentence before a run, and a store without it is left as it was."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import DfkdError
from dfkd_tasks.mlflow_store.addresses import artifact_folder
from dfkd_tasks.mlflow_store.publishing import open_store
from dfkd_tasks.mlflow_store.readiness import check_store, has_version


def change(command: str) -> Callable[[], None]:
    def work() -> None:
        with closing(sqlite3.connect("mlflow.db")) as store:
            store.execute(command)
            store.commit()

    return work


def cut() -> None:
    with Path("mlflow.db").open("r+b") as stream:
        stream.truncate(Path("mlflow.db").stat().st_size // 2)


def zero_the_middle() -> None:
    with Path("mlflow.db").open("r+b") as stream:
        stream.seek(Path("mlflow.db").stat().st_size // 2)
        stream.write(bytes(65536))


def make_a_folder() -> None:
    Path("mlflow.db").unlink()
    Path("mlflow.db").mkdir()


def test_check_store__accepts_a_store_quickly_and_leaves_it_unchanged(store: Path) -> None:
    open_store("dfkd")
    before = file_sha256(store)
    start = time.perf_counter()
    check_store("dfkd")
    assert time.perf_counter() - start < 0.5
    assert file_sha256(store) == before
    assert sorted(path.name for path in Path().iterdir()) == ["mlflow.db"]


def test_has_version__is_true_until_mlflow_deletes_it(store: Path) -> None:
    open_store("dfkd")
    client = mlflow.MlflowClient()
    client.create_registered_model("m")
    made = client.create_model_version("m", str(store.parent / "files"))
    assert has_version("m", made.version)
    assert not has_version("m", "2")
    client.delete_model_version("m", made.version)
    assert not has_version("m", made.version)


def test_check_store__none_and_an_empty_one_are_made_by_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_store("dfkd")
    Path("mlflow.db").touch()
    check_store("dfkd")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "mlflow.db is damaged: .*mv mlflow.db mlflow.db.old"),
        (zero_the_middle, "mlflow.db is damaged: "),
        (lambda: Path("mlflow.db").write_text("half a file"), "mlflow.db is damaged: file is not a database"),
        (make_a_folder, "mlflow.db is a folder"),
        (change("DROP TABLE runs"), "tables are missing"),
        (change("DROP TABLE alembic_version"), "tables are missing"),
        (change("DELETE FROM alembic_version"), "another version of MLflow"),
        (change("UPDATE alembic_version SET version_num = 'f00'"), "another version of MLflow .schema f00"),
        (change("UPDATE alembic_version SET version_num = '0584bdc529eb'"), "mlflow db upgrade sqlite:///mlflow.db"),
        (
            change("UPDATE experiments SET artifact_location = 'file:///proc/x' WHERE name = 'other'"),
            "MLflow's files cannot be written into /proc/x",
        ),
    ],
)
def test_check_store__reports_the_fault_and_the_way_out(store: Path, damage: Callable[[], None], message: str) -> None:
    damage()
    with pytest.raises(DfkdError, match=message) as caught:
        check_store("other")
    assert "\n" not in str(caught.value)


def test_check_store__locked_by_another_process(store: Path) -> None:
    with closing(sqlite3.connect(store)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DfkdError, match="locked by another process"):
            check_store("dfkd")
    check_store("dfkd")


@pytest.mark.parametrize("name", ["/abs/olute", "../../up", "..", "a b", "ünï"])
def test_artifact_folder__stays_in_the_project(name: str) -> None:
    assert artifact_folder(name).parent == Path("mlartifacts").resolve()
