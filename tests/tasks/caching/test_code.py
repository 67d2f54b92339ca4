"""A dozen kinds of edits, and which stages are then made again."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest

from dfkd_tasks.caching.code import ENTRY_MODULES, PACKAGES, code_digest, code_files

ALL = set(ENTRY_MODULES)

# What is edited: the file, a piece of its text, and what takes its place.
WITHOUT_EFFECT = {
    "a docstring": ("dfkd_core/models/layers.py", '"""Addresses of', '"""Other words about addresses of'),
    "a field's documentation": ("dfkd_core/distillation/config.py", '"""Passes over the', '"""Runs over the'),
    "a comment": ("dfkd_core/common/seeding.py", "\n\ndef derive_seed", "\n\n# A comment.\ndef derive_seed"),
    "a blank line": ("dfkd_core/common/seeding.py", "\n\ndef derive_seed", "\n\n\ndef derive_seed"),
    "the text of an error": ("dfkd_core/common/devices.py", "GPUs are visible. Use", "GPUs can be seen. Take"),
    "the class tree of errors": (
        "dfkd_core/errors.py",
        "class ExportError(DfkdError)",
        "class ExportError(ValueError)",
    ),
    "a report of progress": ("dfkd_core/progress.py", "unit: str", "unit: str | None"),
    "a check of a range": ("dfkd_core/sections.py", '"at least"', '"not less than"'),
    "the downloader": ("dfkd_core/downloads.py", "Acquire::Retries=1", "Acquire::Retries=3"),
    "a picture of the run's records": ("dfkd_tasks/records/pictures.py", 'colour = "white"', 'colour = "yellow"'),
    "what MLflow logs": ("dfkd_tasks/mlflow_store/results.py", '"reports/student")', '"report")'),
    "the cache itself": ("dfkd_tasks/caching/workspace.py", "_KEPT_WORK_FOLDERS = 3", "_KEPT_WORK_FOLDERS = 4"),
    "an export form": ("dfkd_core/export/forms.py", 'input_names=["images"]', 'input_names=["image"]'),
    "what `dfkd inspect` finds out": ("dfkd_core/inspection.py", "_TIMED_STEPS = 2", "_TIMED_STEPS = 3"),
}
WITH_EFFECT = {
    "a random stream": ("dfkd_core/common/seeding.py", "digest_size=8", "digest_size=16", ALL),
    "a network": ("dfkd_core/models/built_in.py", "84)", "85)", ALL),
    "the way a file is parsed": ("dfkd_core/data/datasets.py", "mul(255 / 16)", "mul(15)", {"teacher", "evaluate"}),
    "a checksum": ("dfkd_core/data/published_files.py", '"c59f468a', '"d59f468a', {"teacher", "evaluate"}),
    "the schedule of a training": ("dfkd_core/training/loop.py", "/ 2\n", "/ 3\n", {"teacher", "distill", "tune"}),
    "a check of foreign teachers": ("dfkd_core/teachers/preflight.py", "_SAME = 1e-4", "_SAME = 1e-3", {"teacher"}),
    "how features are sampled": (
        "dfkd_core/statistics/features.py", "+ standard_normal @", "- standard_normal @",
        {"statistics", "synthesize", "evaluate", "tune"},
    ),
    "the held-out prior": (
        "dfkd_core/priors/mosaic.py", "_NUM_BUMPS = 5", "_NUM_BUMPS = 6", {"synthesize", "evaluate", "tune"}
    ),
    "a synthesis method": (
        "dfkd_core/synthesis/boundary.py", "0.5 * (logits[::2]", "0.4 * (logits[::2]", {"synthesize", "tune"}
    ),
    "a loss": ("dfkd_core/distillation/soft_labels.py", "temperature**2 *", "temperature *", {"distill", "tune"}),
    "a figure": ("dfkd_core/evaluation/metrics.py", ".abs().sum() / len", ".abs().max() / len", {"evaluate"}),
    "a default": ("dfkd_core/distillation/config.py", "PositiveInt = 20", "PositiveInt = 21", {"distill", "tune"}),
    "a stage's task": ("dfkd_tasks/stages/distillation.py", '"epochs.csv"', '"epoch.csv"', {"distill"}),
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code."""
    for package in ("dfkd_core", "dfkd_tasks"):
        shutil.copytree(PACKAGES / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def remade(project: Path, file: str, old: str, new: str) -> set[str]:
    """Return the stages whose digest an edit changes."""
    path = project / file
    text = path.read_text()
    assert old in text, f"{old!r} is not in {file}"
    path.write_text(text.replace(old, new, 1))
    return {stage for stage in ENTRY_MODULES if code_digest(stage, project) != code_digest(stage)}


@pytest.mark.parametrize("edit", WITHOUT_EFFECT)
def test_an_edit_that_changes_no_result_makes_nothing_again(project: Path, edit: str) -> None:
    assert remade(project, *WITHOUT_EFFECT[edit]) == set()


@pytest.mark.parametrize("edit", WITH_EFFECT)
def test_an_edit_that_can_change_a_result_makes_again_what_uses_it(project: Path, edit: str) -> None:
    file, old, new, stages = WITH_EFFECT[edit]
    assert remade(project, file, old, new) == stages


def test_a_new_module_counts_once_it_is_imported(project: Path) -> None:
    (project / "dfkd_core/common/fresh.py").write_text("VALUE = 1\n")
    assert code_digest("distill", project) == code_digest("distill")
    path = project / "dfkd_core/distillation/mixing.py"
    path.write_text(
        path.read_text().replace("import torch\n", "import torch\nfrom dfkd_core.common.fresh import VALUE\n", 1)
    )
    assert project / "dfkd_core/common/fresh.py" in code_files("distill", project)


def test_every_stage_has_a_digest_of_its_own() -> None:
    digests = {code_digest(stage) for stage in ENTRY_MODULES}
    assert len(digests) == len(ENTRY_MODULES)
    assert {len(digest) for digest in digests} == {64}


def test_a_parser_that_another_thread_disturbs_tries_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python 3.11 raises this if two threads build syntax trees at the same time; here it is raised for certain.
    parse, failures = ast.parse, iter(range(3))

    def disturbed(*arguments: Any, **options: Any) -> ast.AST:
        if next(failures, None) is not None:
            raise SystemError("AST constructor recursion depth mismatch (before=129, after=80)")
        return parse(*arguments, **options)

    path = project / "dfkd_core/common/seeding.py"
    path.write_text(path.read_text() + "\nFRESH = 1\n")
    monkeypatch.setattr(ast, "parse", disturbed)
    assert code_digest("distill", project) != code_digest("distill")
    assert next(failures, None) is None


def test_digest__is_the_same_for_all_versions_of_python(tmp_path: Path) -> None:
    # Computed with Python 3.11, 3.12 and 3.13, whose syntax trees differ.
    stages, core = tmp_path / "dfkd_tasks/stages", tmp_path / "dfkd_core/common"
    for folder in (stages, core):
        folder.mkdir(parents=True)
    (stages / "teacher.py").write_text(
        'from dfkd_core.common.net import Net\n\n\ndef make(x: int) -> str:\n    return f"{Net(x)!r:>9}"\n'
    )
    (core / "net.py").write_text(
        "class Net:\n    def __init__(self, size: int = 3, *, bias: bool = True) -> None: ...\n"
    )
    assert code_digest("teacher", tmp_path) == "e3f5a91ff49d3c924d1f568d4037988a5db526211829663e8ad1332829ae3b91"
