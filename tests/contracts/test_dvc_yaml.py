"""dvc.yaml, the tables in the code and the imports of the code agree with each other."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_core.config import Params
from flows.params import flatten
from flows.stages import STAGES
from tasks.code import NO_EFFECT, OTHER_MODULES, ROOT, STAGE_MODULES, module_files

ENTRY = {
    "teacher": "tasks/teacher.py",
    "statistics": "tasks/estimation.py",
    "synthesize": "tasks/synthesis.py",
    "distill": "tasks/distillation.py",
    "evaluate": "tasks/evaluation.py",
}
OTHER_ENTRY = {"tune": "tasks/tuning.py"}
STAGE_DEFINITIONS: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_stages__are_the_same_everywhere() -> None:
    assert list(STAGE_DEFINITIONS) == list(STAGES) == list(STAGE_MODULES) == list(ENTRY)
    assert list(OTHER_MODULES) == list(OTHER_ENTRY)


@pytest.mark.parametrize("stage", STAGES)
def test_deps__are_the_modules_of_the_cache_key(stage: str) -> None:
    code = {dep for dep in STAGE_DEFINITIONS[stage]["deps"] if not dep.startswith("artifacts/")}
    assert code == set(STAGE_MODULES[stage])


@pytest.mark.parametrize(("stage", "entry"), (ENTRY | OTHER_ENTRY).items())
def test_modules__cover_what_the_stage_imports_and_no_more(stage: str, entry: str) -> None:
    imported = _imported_files(ROOT / entry) | {ROOT / entry}
    without_effect = {ROOT / name for name in NO_EFFECT}
    assert set(module_files(stage)) == imported - without_effect


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


def _imported_files(start: Path) -> set[Path]:
    """Return the files of dfkd_core that `start` imports, directly or not."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        new = _direct_imports(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def _direct_imports(path: Path) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {file for name in names if name.split(".")[0] == "dfkd_core" for file in _files_of(name)}


def _files_of(module: str) -> set[Path]:
    """Return the module's file and those of the packages around it."""
    parts = module.split(".")
    packages = {ROOT.joinpath(*parts[:length], "__init__.py") for length in range(1, len(parts) + 1)}
    return {file for file in packages | {ROOT.joinpath(*parts).with_suffix(".py")} if file.is_file()}
