"""Commands that install missing packages.

No package index has dfkd, so a command names the folder of the checkout, or the packages themselves with their ranges.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any

__all__ = [
    "checkout",
    "colleagues_command",
    "install_command",
    "install_packages_command",
    "pipeline_fault",
    "version_text",
]

_NAME = "dfkd"
_BASE = ""
_PLACE = "FOLDER_OF_DFKD"
_MOST_NAMES = 3


def install_command(extra: str) -> str:
    """Return the line for a shell that installs the packages of an extra, for this interpreter.

    Args:
        extra: Its name in pyproject.toml, for example "onnx".
    """
    folder, needed = checkout(), _requirements().get(extra, {})
    if folder is None and needed:
        return _install(*needed.values())
    return f"{_installer()} -e {quote(f'{folder or _PLACE}[{extra}]')}"


def install_packages_command(*names: str) -> str:
    """Return the line for a shell that installs single packages, with the ranges that dfkd needs.

    Args:
        names: For example "torch"; one that dfkd does not declare is taken as it is.
    """
    known = {name: text for extra in _requirements().values() for name, text in extra.items()}
    return _install(*(known.get(name, name) for name in names))


def colleagues_command(project: Path) -> str:
    """Return the line for a shell that installs this version of dfkd on another machine.

    Args:
        project: Folder in which the line is typed there; if it is a checkout of dfkd, its own code is installed.
    """
    if checkout() == project.resolve():
        return "make setup && . .venv/bin/activate"
    own = _project().get("version") or _version(_NAME) or "VERSION"
    wheel = f"{_NAME}-{own}-py3-none-any.whl[pipeline]"
    return f"pip install {quote(wheel)}    # the wheel: python -m build, where dfkd's code is"


def pipeline_fault() -> str:
    """Return which packages of the command `dfkd` are not installed, and how to install them; empty if all are."""
    missing = [name for name in _requirements().get("pipeline", {}) if _version(name) is None]
    if not missing:
        return ""
    names = ", ".join(missing[:_MOST_NAMES]) + (", ..." if missing[_MOST_NAMES:] else "")
    needs = f"{len(missing)} packages that are" if missing[1:] else "a package that is"
    return f"This command needs {needs} not installed ({names}). Install with: {install_command('pipeline')}"


def version_text() -> str:
    """Return the versions of dfkd, torch and Python, and the folder of the code, in one line."""
    own = _project().get("version") or _version(_NAME) or "(not installed)"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"dfkd {own}, torch {_version('torch')}, Python {python}, code in {_folder()}"


def checkout() -> Path | None:
    """Return the folder of the repository if the code is imported from it, None if it is an installed copy."""
    return _folder() if _project() else None


def _folder() -> Path:
    return Path(__file__).resolve().parents[1]


def _project() -> dict[str, Any]:
    """Return the section `project` of the checkout's pyproject.toml; empty if this is an installed copy."""
    try:
        project = tomllib.loads((_folder() / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}
    return project if project.get("name") == _NAME else {}


def _requirements() -> dict[str, dict[str, str]]:
    """Return the requirements of each extra, and of the base, by the names of the packages; empty if not known."""
    # Imported here: only messages need it.
    from packaging.requirements import Requirement

    found: dict[str, dict[str, str]] = {}
    for extra, text in _declared():
        requirement = Requirement(text)
        marker, requirement.marker = requirement.marker, None
        if marker is None or marker.evaluate({"extra": extra}):
            found.setdefault(extra, {})[requirement.name] = str(requirement)
    return found


def _declared() -> Iterator[tuple[str, str]]:
    """Yield the extra, or the base, and the text of each requirement of the checkout or of the installed copy."""
    project = _project()
    if project:
        sections = {_BASE: project.get("dependencies", []), **project.get("optional-dependencies", {})}
        yield from ((extra, text) for extra, texts in sections.items() for text in texts)
        return
    try:
        texts = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        return
    for text in texts:
        named = re.search(r"""extra *== *["']([\w.-]+)""", text)
        yield named[1] if named else _BASE, text


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _install(*requirements: str) -> str:
    return " ".join([_installer(), *map(quote, requirements)])


def _installer() -> str:
    """Return the command up to the packages; an environment that uv made has no pip."""
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {quote(sys.executable)}"
    return f"{quote(sys.executable)} -m pip install"
