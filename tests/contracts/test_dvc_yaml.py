"""dvc.yaml names the code that the stages import, and the parameters and artifacts that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc_objects.fs.local import LocalFileSystem

from dfkd_flows.settings.members import STUDENT_SECTIONS, TEACHER_SECTIONS
from dfkd_flows.settings.overrides import apply_overrides, changes_between, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten, load_params
from dfkd_flows.stages.command import STAGES
from dfkd_flows.stages.names import STUDENT_STAGES, TEACHER_STAGES, addresses
from dfkd_tasks.caching.code import ENTRY_MODULES, code_files

ROOT = Path(__file__).resolve().parents[2]


MOST_CODE_DEPS = 8
STAGE_GROUPS: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGE_DEFINITIONS: dict[str, Any] = {name: group["do"] for name, group in STAGE_GROUPS.items()}
NOT_READ = {"execution", "notify", "registry", "teachers", "students"}


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
    assert set(_sections(stage)) <= sections - NOT_READ


def test_params__every_section_that_decides_a_result_is_named() -> None:
    named = {section for stage in STAGES for section in _sections(stage)}
    assert named == {path.split(".")[0] for path in flatten(Params())} - NOT_READ


def _sections(stage: str) -> list[str]:
    return [name for name in STAGE_DEFINITIONS[stage]["params"] if "." not in name]


@pytest.mark.parametrize("stage", STAGES)
def test_params__include_the_changes_of_all_whose_sections_the_stage_reads(stage: str) -> None:
    of_teacher = any(section in TEACHER_SECTIONS for section in _sections(stage))
    of_student = any(section in STUDENT_SECTIONS for section in _sections(stage))
    teacher = "${key}" if STAGE_GROUPS[stage]["foreach"] == "${teachers}" else "${item.teacher}"
    expected = [f"teachers.{teacher}"] * of_teacher + ["students.${key}"] * of_student
    assert [name for name in STAGE_DEFINITIONS[stage]["params"] if "." in name] == expected


def test_stages__are_made_for_each_teacher_or_each_student() -> None:
    groups = {name: group["foreach"] for name, group in STAGE_GROUPS.items()}
    assert groups == dict.fromkeys(TEACHER_STAGES, "${teachers}") | dict.fromkeys(STUDENT_STAGES, "${students}")


# DVC's graph library.
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_two_teachers_and_three_students__are_one_graph_in_which_shared_work_is_made_once(project: Path) -> None:
    changes = ["teachers.big={}", "students.small={teacher: default}", "students.tall={teacher: big}"]
    current = load_params()
    write_params(changes_between(current, apply_overrides(current, changes)))
    (project / ".dvc").mkdir()
    with Repo(str(project), config={"core": {"no_scm": True}}) as repo:
        edges = {(one.addressing, other.addressing) for one, other in repo.index.graph.edges}
        stages = {stage.addressing for stage in repo.index.stages}
    assert stages == {*addresses(load_params())}
    assert len(stages) == 3 * 2 + 2 * 3
    assert {other for one, other in edges if one == "distill@small"} == {"teacher@default", "synthesize@default"}
    assert {one for one, other in edges if other == "synthesize@default"} == {"distill@default", "distill@small"}
    assert {one for one, other in edges if other == "synthesize@big"} == {"distill@tall"}


@pytest.mark.parametrize("stage", STAGES)
def test_deps__on_artifacts_are_outs_of_earlier_stages(stage: str) -> None:
    earlier = list(STAGES)[: list(STAGES).index(stage)]
    made = {out for name in earlier for out in STAGE_DEFINITIONS[name].get("outs", [])}
    deps = {dep.replace("${item.teacher}", "${key}") for dep in STAGE_DEFINITIONS[stage]["deps"]}
    assert {dep for dep in deps if dep.startswith("artifacts/")} <= made
