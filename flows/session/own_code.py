"""The code that runs is the code of the project's folder, also in a clone or in a temporary copy that DVC makes.

The installed command imports the packages of the folder that it was installed from. Elsewhere it would run other code
than that which DVC hashes and dvc.lock records.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.session.environment import find_project
from tasks.caching.code import ROOT

__all__ = ["is_foreign", "run_own_code"]

_PACKAGES = ("dfkd_core", "tasks", "flows")
_PATH = "PYTHONPATH"


def run_own_code() -> None:
    """Start this command again with the packages of the project's folder, if this has some and others were imported."""
    project = find_project(Path.cwd())
    if project is None or not is_foreign(project):
        return
    path = os.environ.get(_PATH, "")
    if path.split(os.pathsep)[0] == str(project):
        sys.exit(f"dfkd: {project} holds code, but Python imports that of {ROOT}. Install it with: make setup")
    own = os.pathsep.join(filter(None, (str(project), path)))
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, _PATH: own})


def is_foreign(project: Path, imported_from: Path = ROOT) -> bool:
    """Return whether `project` holds the packages and they were imported from another folder."""
    holds_code = all((project / name / "__init__.py").is_file() for name in _PACKAGES)
    return holds_code and project.resolve() != imported_from
