"""dvc.yaml names the code that the stages import, and the parameters and artifacts that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc_objects.fs.local import LocalFileSystem

from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.stages.command import STAGES
from dfkd_tasks.caching.code import ENTRY_MODULES, code_files

ROOT = Path(__file__).resolve().parents[2]


MOST_CODE_DEPS = 8
STAGE_DEFINITIONS: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def code_deps(stage: str) -> list[Path]:
    return [ROOT / dep for dep in STAGE_DEFINITIONS[stage]["deps"] if not dep.startswith("artifacts/")]


def test_stages__are_the_same_everywhere() -> None:
    assert list(STAGE_DEFINITIONS) == list(STAGES) == [name for name in ENTRY_MODULES if name != "tune"]


@pytest.mark.parametrize("stage", STAGES)
def test_deps__cover_what_the_stage_imports_and_nothing_else(stage: str) -> None:
    files, deps = [file.resolve() for file in code_files(stage)], code_deps(stage)
    assert [file for file in files if not any(file.is_relative_to(dep) for dep in deps)] == []
    assert [dep for dep in deps if not any(file.is_relative_to(dep) for file in files)] == []
    assert len(deps) <= MOST_CODE_DEPS


@pytest.mark.parametrize("stage", STAGES)
def test_deps__are_seen_by_dvc_with_all_their_files(stage: str) -> None:
    with Repo(str(ROOT)) as repo:
        for dep in code_deps(stage):
            found = {Path(path) for path in repo.dvcignore.find(LocalFileSystem(), str(dep))} if dep.is_dir() else {dep}
            assert {path for path in found if path.suffix == ".py"} == set(dep.rglob("*.py") if dep.is_dir() else [dep])


@pytest.mark.parametrize("stage", STAGES)
def test_params__are_sections_that_exist(stage: str) -> None:
    sections = {path.split(".")[0] for path in flatten(Params())}
    assert set(STAGE_DEFINITIONS[stage]["params"]) <= sections - {"execution", "registry"}


def test_params__every_section_that_decides_a_result_is_named() -> None:
    named = {section for stage in STAGE_DEFINITIONS.values() for section in stage["params"]}
    assert named == {path.split(".")[0] for path in flatten(Params())} - {"execution", "registry"}


@pytest.mark.parametrize("stage", STAGES)
def test_deps__on_artifacts_are_outs_of_earlier_stages(stage: str) -> None:
    earlier = list(STAGES)[: list(STAGES).index(stage)]
    made = {out for name in earlier for out in STAGE_DEFINITIONS[name].get("outs", [])}
    assert {dep for dep in STAGE_DEFINITIONS[stage]["deps"] if dep.startswith("artifacts/")} <= made
