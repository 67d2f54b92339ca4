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
from typing import Any

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
_HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
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
    return path.parent == root / _CORE and not any(module.startswith(_folders(root)) for module in _read(path).imports)


@cache
def _folders(root: Path) -> tuple[str, ...]:
    return tuple(f"{_CORE}.{folder.name}" for folder in (root / _CORE).iterdir() if folder.is_dir())


@cache
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
    found = path.stat()
    return _parse(path, found.st_mtime_ns, found.st_size)


@cache
def _parse(path: Path, written: int, size: int) -> _Module:
    """Return what a file holds; it is parsed again if its time or its size changes."""
    tree = _syntax_tree(path.read_text(encoding="utf-8"))
    parts: list[str] = []
    _spell(tree, parts)
    return _Module(tuple(_imported(tree)), "".join(parts))


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
        elif isinstance(node, ast.Call) and node.args and _name(node.func).endswith("import_module"):
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def _name(function: ast.expr) -> str:
    return str(getattr(function, "id", getattr(function, "attr", "")))


def _spell(node: Any, parts: list[str]) -> None:
    """Append a syntax tree as text, the same for all versions of Python: empty fields, which differ, are left out.

    Without docstrings, the texts under the fields of a section, and what errors report.
    """
    if isinstance(node, list):
        for item in node:
            _spell(item, parts)
            parts.append(",")
    elif isinstance(node, ast.AST):
        parts.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = _counted(node, name, getattr(node, name, None))
            if value not in (None, []):
                parts.append(f"{name}=")
                _spell(value, parts)
        parts.append(")")
    else:
        parts.append(repr(node))


def _counted(node: ast.AST, name: str, value: Any) -> Any:
    """Return the part of a field that can change a result."""
    if name == "body" and isinstance(node, _HAVE_DOCSTRINGS):
        return [line for line in value if not _is_text(line)]
    if name == "exc" and isinstance(value, ast.Call):
        return value.func
    return None if name == "msg" else value


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
