"""The folders are the architecture: few levels, a docstring each, and nothing loose between them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from dfkd_tasks.caching.code import PACKAGES

MOST_LEVELS = 5
TESTS = Path(__file__).resolve().parents[1]
TESTED_IN = {"dfkd_tasks": "tasks", "dfkd_flows": "flows"}
FOLDERS = {
    package: sorted(path.name for path in (PACKAGES / package).iterdir() if (path / "__init__.py").is_file())
    for package in ("dfkd_core", "dfkd_tasks", "dfkd_flows")
}


def imported_folders(folder: Path) -> set[str]:
    """Return the folders of dfkd_core that the files of one of them import."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dfkd_core."):
                found.add(node.module.split(".")[1])
    return (found & set(FOLDERS["dfkd_core"])) - {folder.name}


def test_core__is_on_few_levels() -> None:
    needs = {name: imported_folders(PACKAGES / "dfkd_core" / name) for name in FOLDERS["dfkd_core"]}
    levels = []
    placed: set[str] = set()
    while placed < needs.keys():
        level = {name for name, others in needs.items() if name not in placed and others <= placed}
        assert level, f"a cycle among {sorted(needs.keys() - placed)}"
        levels.append(sorted(level))
        placed |= level
    assert len(levels) <= MOST_LEVELS, levels


@pytest.mark.parametrize(
    ("package", "files"), [("dfkd_tasks", set()), ("dfkd_flows", {"__main__.py", "cli.py", "pipeline.py"})]
)
def test_packages__hold_folders_and_their_entry_points_alone(package: str, files: set[str]) -> None:
    assert {path.name for path in (PACKAGES / package).glob("*.py")} == files | {"__init__.py"}


@pytest.mark.parametrize("folder", [f"{package}/{name}" for package, names in FOLDERS.items() for name in names])
def test_every_folder__names_what_it_owns_imports_and_where_to_begin(folder: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGES / folder / "__init__.py").read_text())) or ""
    assert len(text.splitlines()) >= 3
    assert "Imports:" in text


def test_tests__mirror_the_packages() -> None:
    for package, names in FOLDERS.items():
        folders = {path.name for path in (TESTS / TESTED_IN.get(package, package)).iterdir() if path.is_dir()} - {
            "__pycache__"
        }
        assert folders <= set(names)


def test_flows__hide_no_module_of_the_standard_library() -> None:
    # Prefect puts the folder of a deployed flow in front of the import path.
    names = {path.stem for path in (PACKAGES / "dfkd_flows").glob("*.py")} | set(FOLDERS["dfkd_flows"])
    assert names & set(sys.stdlib_module_names) == set()
