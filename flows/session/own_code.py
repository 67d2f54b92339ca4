"""The code that runs is the code of the project's folder, also in a clone or in a temporary copy that DVC makes.

The installed command imports the packages of the folder that it was installed from. Elsewhere it would run other code
than that which DVC hashes and dvc.lock records.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dfkd_flows.session.environment import find_project
from dfkd_tasks.caching.code import PACKAGES

__all__ = ["is_foreign", "run_own_code", "start_again"]

_NAMES = ("dfkd_core", "dfkd_tasks", "dfkd_flows")
_PATH = "PYTHONPATH"


def run_own_code() -> None:
    """Start this command again with the packages of the project's folder, if this has some and others were imported."""
    project = find_project(Path.cwd())
    if project is None or not is_foreign(project):
        return
    source, path = str(_packages_of(project)), os.environ.get(_PATH, "")
    if path.split(os.pathsep)[0] == source:
        sys.exit(f"dfkd: {project} holds code, but Python imports that of {PACKAGES}. Install it with: make setup")
    own = os.pathsep.join(filter(None, (source, path)))
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, _PATH: own})


def start_again() -> None:
    """Replace this process by one that does the same from its start, with the code that is in the files now."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_foreign(project: Path, packages: Path = PACKAGES) -> bool:
    """Return whether `project` is a checkout with code of its own, and the imported packages are in another folder."""
    own = _packages_of(project)
    return all((own / name / "__init__.py").is_file() for name in _NAMES) and own.resolve() != packages.resolve()


def _packages_of(checkout: Path) -> Path:
    return checkout / "src"
