"""Which code decides a stage's result, and a digest of it that edits of the documentation do not change."""

from __future__ import annotations

import ast
import hashlib
import threading
from functools import cache
from pathlib import Path

__all__ = ["NO_EFFECT", "OTHER_MODULES", "ROOT", "STAGE_MODULES", "code_digest", "module_files"]

_one_at_a_time = threading.Lock()

ROOT = Path(__file__).resolve().parent.parent

_MODEL = (
    "dfkd_core/architectures.py",
    "dfkd_core/devices.py",
    "dfkd_core/digests.py",
    "dfkd_core/layers.py",
    "dfkd_core/models.py",
    "dfkd_core/networks.py",
    "dfkd_core/outputs.py",
    "dfkd_core/programs.py",
    "dfkd_core/seeding.py",
    "dfkd_core/vision.py",
    "dfkd_core/weights.py",
)
_IMAGES = (
    "dfkd_core/data.py",
    "dfkd_core/dataset_files.py",
    "dfkd_core/image_fitting.py",
    "dfkd_core/image_sources.py",
    "dfkd_core/torchvision_sets.py",
)
_TRAINING = (
    *_MODEL,
    *_IMAGES,
    "dfkd_core/augmentation.py",
    "dfkd_core/prefetching.py",
    "dfkd_core/source.py",
    "dfkd_core/rows.py",
    "dfkd_core/training.py",
)
_PASSES = ("dfkd_core/memory.py", "dfkd_core/merging.py", "dfkd_core/micro_batches.py", "dfkd_core/teacher.py")
_STATISTICS = (*_MODEL, *_PASSES, "dfkd_core/priors", "dfkd_core/statistics.py")

STAGE_MODULES = {
    "teacher": (
        *_TRAINING,
        "dfkd_core/bringing.py",
        "dfkd_core/preflight.py",
        "tasks/teacher.py",
    ),
    "statistics": (*_STATISTICS, "tasks/estimation.py"),
    "synthesize": (
        *_STATISTICS,
        "dfkd_core/rows.py",
        "dfkd_core/synthesis",
        "dfkd_core/transfer_set.py",
        "tasks/synthesis.py",
    ),
    "distill": (
        *_TRAINING,
        *_PASSES,
        "dfkd_core/averaging.py",
        "dfkd_core/channel_choice.py",
        "dfkd_core/checkpoints.py",
        "dfkd_core/disagreement.py",
        "dfkd_core/distillation.py",
        "dfkd_core/distillation_config.py",
        "dfkd_core/distillation_steps.py",
        "dfkd_core/feature_matching.py",
        "dfkd_core/least_squares.py",
        "dfkd_core/mixing.py",
        "dfkd_core/pruning.py",
        "dfkd_core/soft_labels.py",
        "dfkd_core/students.py",
        "dfkd_core/transfer_set.py",
        "tasks/distillation.py",
    ),
    "evaluate": (
        *_TRAINING,
        *_PASSES,
        "dfkd_core/class_order.py",
        "dfkd_core/evaluation.py",
        "dfkd_core/evaluation_data.py",
        "dfkd_core/priors",
        "dfkd_core/proxy.py",
        "tasks/evaluation.py",
    ),
}
"""Files and packages that a stage's result depends on, in the order of the stages; `deps` in dvc.yaml name the same."""

OTHER_MODULES = {
    "tune": (
        *STAGE_MODULES["distill"][:-1],
        "dfkd_core/in_memory.py",
        "dfkd_core/priors",
        "dfkd_core/proxy.py",
        "dfkd_core/statistics.py",
        "dfkd_core/synthesis",
        "tasks/tuning.py",
    ),
}
"""The same for work that is no stage of the pipeline."""

NO_EFFECT = ("dfkd_core/__init__.py", "dfkd_core/errors.py", "dfkd_core/progress.py", "dfkd_core/sections.py")
"""Files that no number depends on: messages, reports and the checks of ranges."""


def code_digest(stage: str) -> str:
    """Return a SHA-256 over the syntax trees, without docstrings and comments, of a stage's or `tune`'s modules."""
    # Python 3.11 fails now and then where two threads build syntax trees at once.
    with _one_at_a_time:
        return _code_digest(stage)


@cache
def _code_digest(stage: str) -> str:
    digest = hashlib.sha256()
    for path in module_files(stage):
        tree = _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{ast.dump(tree)}\0".encode())
    return digest.hexdigest()


def module_files(stage: str) -> list[Path]:
    """Return the Python files of a stage's or `tune`'s modules, packages opened up, sorted."""
    found = [ROOT / name for name in (STAGE_MODULES | OTHER_MODULES)[stage]]
    return sorted(file for path in found for file in (path.rglob("*.py") if path.is_dir() else [path]))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Also drops the string literals under the fields of a section, which are their documentation.
            node.body = [line for line in node.body if not _is_text(line)]
    return tree


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
