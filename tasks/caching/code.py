"""The code that decides a stage's result: the modules that its entry module imports, and a digest of them.

The entry module and the modules of `dfkd_core` count. Modules in the root of `dfkd_core` that use none of its folders
(errors, progress, range checks, downloads) and the rest of `tasks` change no result. Docstrings, comments and the texts
of errors do not count either.
"""

from __future__ import annotations

import ast
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ENTRY_MODULES", "PACKAGES", "code_digest", "code_files"]

PACKAGES = Path(__file__).absolute().parent.parent.parent
"""Folder that holds the packages: src in a checkout, else that of the installed packages."""

ENTRY_MODULES = {
    "teacher": "dfkd_tasks.stages.teacher",
    "statistics": "dfkd_tasks.stages.statistics",
    "synthesize": "dfkd_tasks.stages.synthesis",
    "distill": "dfkd_tasks.stages.distillation",
    "evaluate": "dfkd_tasks.stages.evaluation",
    "tune": "dfkd_tasks.stages.tuning",
}
"""The module that holds the tasks of each stage of dvc.yaml, in their order, and of `dfkd tune`."""

_CORE = "dfkd_core"
_one_at_a_time = threading.Lock()
_ATTEMPTS = 10
_SECONDS_BETWEEN_ATTEMPTS = 0.05


def code_digest(stage: str, root: Path = PACKAGES) -> str:
    """Return the SHA-256 of the code that decides a stage's result, 64 hex digits.

    Args:
        stage: A key of `ENTRY_MODULES`.
        root: Folder that holds the packages.
    """
    # Python 3.11 sometimes fails if two threads build syntax trees at the same time.
    with _one_at_a_time:
        return _code_digest(stage, root)


@cache
def _code_digest(stage: str, root: Path) -> str:
    digest = hashlib.sha256()
    for path in code_files(stage, root):
        digest.update(f"{path.relative_to(root).as_posix()}\0{_read(path).code}\0".encode())
    return digest.hexdigest()


def code_files(stage: str, root: Path = PACKAGES) -> list[Path]:
    """Return the files whose code decides a stage's result, sorted: the entry module and what it imports, at any depth.

    Arguments as in `code_digest`.
    """
    entry = _file_of(ENTRY_MODULES[stage], root)
    assert entry, f"no module {ENTRY_MODULES[stage]}"
    found, waiting = {entry}, [entry]
    seen: set[str] = set()
    while waiting:
        new = set(_read(waiting.pop()).imports) - seen
        seen |= new
        imported = {path for module in new for path in _counted_files(module, root)} - found
        waiting += imported
        found |= imported
    return sorted(found)


def _counted_files(module: str, root: Path) -> Iterator[Path]:
    """Yield the files that run when a module is imported: its own and the `__init__` of each folder around it."""
    package, *rest = module.split(".")
    if package != _CORE:
        return
    for length in range(1, len(rest) + 1):
        path = _file_of(".".join([package, *rest[:length]]), root)
        if path and not _changes_nothing(path, root):
            yield path


def _changes_nothing(path: Path, root: Path) -> bool:
    """Return whether a module is in the root of `dfkd_core` and uses none of its folders."""
    core = root / _CORE
    folders = tuple(f"{_CORE}.{folder.name}" for folder in core.iterdir() if folder.is_dir())
    return path.parent == core and not any(module.startswith(folders) for module in _read(path).imports)


def _file_of(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@dataclass(frozen=True, slots=True)
class _Module:
    imports: tuple[str, ...]
    """Names of the modules that the file may import, also inside functions."""
    code: str
    """Its syntax tree without texts."""


def _read(path: Path) -> _Module:
    return _parse(path.read_text(encoding="utf-8"))


@cache
def _parse(text: str) -> _Module:
    tree = _syntax_tree(text)
    imports = tuple(_imported(tree))
    return _Module(imports, ast.dump(_without_texts(tree)))


def _syntax_tree(text: str) -> ast.Module:
    """Parse code, again if another thread disturbs it: Python 3.11 counts the depth of all its parsers in one place."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return ast.parse(text)
        except SystemError:
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    return ast.parse(text)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("import_module"):
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def _without_texts(tree: ast.AST) -> ast.AST:
    """Drop, in place, docstrings, the texts under the fields of a section, and what errors report."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        elif isinstance(node, ast.Assert):
            node.msg = None
    return tree


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
