"""The section `artifacts` of dvc.yaml names the students and transfer sets of params.yaml, and keeps the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.dvcfile import load_file
from dvc.repo import Repo

from dfkd_tasks.caching.code_file import PIPELINE
from dfkd_tasks.dvc_project.artifact_list import refresh_artifacts, with_artifacts

STAGES = "stages:\n  one:\n    cmd: echo\n"
OWN = "artifacts:  # ours\n  mine:\n    path: mine.bin\n"
ONE: dict[str, Any] = {"teachers": ["default"], "students": {"default": "default"}}


def entries(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text)["artifacts"])


def test_with_artifacts__names_each_student_and_each_transfer_set() -> None:
    text = with_artifacts(STAGES, teachers=["default", "big"], students={"default": "default", "on": "big"})
    found = entries(text)
    assert {name: entry["path"] for name, entry in found.items()} == {
        "student": "artifacts/students/default",
        "on-student": "artifacts/students/on",
        "transfer-set": "artifacts/teachers/default/transfer_set",
        "big-transfer-set": "artifacts/teachers/big/transfer_set",
    }
    assert {entry["type"] for entry in found.values()} == {"model", "dataset"}
    assert all(isinstance(label, str) for entry in found.values() for label in entry["labels"])
    assert text.startswith(STAGES)


# Of a package that DVC uses.
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_with_artifacts__is_read_by_dvc_with_names_that_it_accepts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    students = dict.fromkeys(("default", "a", "odd_", "odd-", "null"), "yes")
    (tmp_path / "dvc.yaml").write_text(with_artifacts(STAGES, teachers=["yes"], students=students))
    (tmp_path / ".dvc").mkdir()
    with Repo(str(tmp_path), config={"core": {"no_scm": True}}) as repo:
        read = repo.artifacts.read()["dvc.yaml"]
        assert load_file(repo, str(tmp_path / "dvc.yaml")).artifacts
    assert set(read) == {"student", "a-student", "odd_-student", "odd--student", "null-student", "yes-transfer-set"}
    assert not caplog.records


@pytest.mark.parametrize(
    "text", [STAGES, OWN + STAGES, STAGES + OWN, OWN.replace("\n", "\r\n"), f"{STAGES}artifacts:\n"]
)
def test_with_artifacts__adds_and_removes_entries_and_keeps_all_else(text: str) -> None:
    first = with_artifacts(text, **ONE)
    two = with_artifacts(first, teachers=["default"], students={"default": "default", "small": "default"})
    assert "small-student" in entries(two)
    assert with_artifacts(two, **ONE) == first
    assert with_artifacts(first, **ONE) == first
    assert entries(first).get("mine") == ({"path": "mine.bin"} if "mine" in text else None)
    assert {"student", "transfer-set"} <= entries(first).keys()
    assert first.count("\r\n") in (0, first.count("\n"))


def test_with_artifacts__keeps_an_entry_of_the_users_under_a_name_of_ours() -> None:
    text = "artifacts:\n  student:\n    path: other.bin\n"
    found = entries(with_artifacts(text, **ONE))
    assert found["student"] == {"path": "other.bin"}
    assert "transfer-set" in found


@pytest.mark.parametrize(
    "text",
    ["artifacts: {mine: {path: mine.bin}}\n", "artifacts:\n    mine:\n        path: mine.bin\n", "artifacts: 3\n"],
)
def test_refresh_artifacts__leaves_a_section_in_another_form(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("teachers: {default: {}}\nstudents: {default: {teacher: default}}\n")
    PIPELINE.write_text(text)
    refresh_artifacts()
    assert PIPELINE.read_text() == text


@pytest.mark.parametrize("params", [None, "", "teachers: [", "teachers: 3\nstudents: 4\n", "students: {a: }\n"])
def test_refresh_artifacts__leaves_the_file_if_params_yaml_cannot_be_read(
    params: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if params is not None:
        Path("params.yaml").write_text(params)
    PIPELINE.write_text(STAGES)
    refresh_artifacts()
    assert PIPELINE.read_text() == STAGES


def test_refresh_artifacts__takes_no_name_that_leaves_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(
        "teachers: {../x: {}, 3: {}}\nstudents: {'a: b': {teacher: ../x}, ok: {teacher: a}}\n"
    )
    PIPELINE.write_text(STAGES)
    refresh_artifacts()
    assert list(entries(PIPELINE.read_text())) == ["ok-student"]
