"""Whether a folder can hold a new project: what is in it, around it, and what git ignores there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dfkd_core.errors import ConfigError
from dfkd_flows.project.pipeline_text import checkout_pipeline
from dfkd_flows.session.environment import find_project
from dfkd_tasks.dvc_project.git_state import repository_of
from dfkd_tasks.dvc_project.status import LOCK

__all__ = ["check_git", "check_place", "check_results", "is_there"]


def check_place(folder: Path) -> None:
    """Check that a folder is no file, no project, and in no project.

    Raises:
        ConfigError: It is.
    """
    if is_there(folder) and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. Give another one: dfkd init FOLDER")
    project = find_project(folder)
    if project == folder:
        raise ConfigError(
            f"{folder} is a project already, with dvc.yaml and params.yaml. Change its settings with: dfkd run --set "
            "KEY=VALUE (make another project with: dfkd init FOLDER)"
        )
    if project:
        raise ConfigError(f"{folder} is inside of the project {project}. Give a folder outside of it: dfkd init FOLDER")


def check_results() -> None:
    """Check that the current folder has no files at the places of results, which a run would replace.

    Raises:
        ConfigError: There are some, and no dvc.lock of an earlier project.
    """
    taken = [] if LOCK.is_file() else sorted({place for place in _result_places() if is_there(Path(place))})
    if taken:
        raise ConfigError(
            f"{Path.cwd()} has {', '.join(taken)}, where a run would write its results. Make the project in a folder "
            "of its own: dfkd init FOLDER"
        )


def _result_places() -> Iterator[str]:
    """Yield the files and folders that the stages write; of one for each teacher or student, the folder around them."""
    for stage in yaml.safe_load(checkout_pipeline())["stages"].values():
        written: dict[str, Any] = stage.get("do", stage)
        for kind in ("outs", "metrics", "plots"):
            for entry in written.get(kind, []):
                path, separator, _ = (entry if isinstance(entry, str) else next(iter(entry))).partition("${")
                yield path.rpartition("/")[0] if separator else path


def check_git(files: Iterable[Path]) -> None:
    """Check that git does not ignore files of the project in the current folder: DVC would refuse to work.

    Raises:
        ConfigError: It ignores some.
    """
    if not repository_of(Path.cwd()) or not shutil.which("git"):
        return
    # As if they existed and were not tracked.
    command = ["git", "check-ignore", "--no-index", "--", *map(str, files)]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False).stdout
    if found:
        raise ConfigError(
            f"git ignores {', '.join(found.split())} in {Path.cwd()}, which a project needs in git. Find the pattern "
            f"with: git check-ignore -v {found.split()[0]} (or make the project elsewhere: dfkd init FOLDER)"
        )


def is_there(path: Path) -> bool:
    """Return whether there is something at a path, also a link to nowhere."""
    return os.path.lexists(path)
