"""Where a command works: in a project, anywhere, or where a project is to be made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dfkd_flows.session.environment import enter_project, find_project, prepare_environment
from dfkd_tasks.caching.state import STATE_FOLDER

__all__ = ["Place", "entered", "in_project"]

Place = Literal["project", "anywhere", "new project"]


@contextmanager
def entered(place: Place, *, debug: bool = False) -> Iterator[None]:
    """Enter the project of the current folder, and prepare the environment for it.

    Args:
        place: With `project` there must be one. With `anywhere` a command stays in the current folder if there is none,
            and has its state in a folder that is deleted at the end. With `new project` nothing is done, see
            `dfkd_flows.project.layout`.
        debug: As in `prepare_environment`.

    Raises:
        ConfigError: There is no project, and there must be one.
    """
    if place == "new project":
        yield
    elif place == "project" or find_project(Path.cwd()):
        prepare_environment(enter_project(), debug=debug)
        yield
    else:
        with tempfile.TemporaryDirectory(prefix="dfkd-") as folder:
            prepare_environment(Path(folder), debug=debug)
            os.environ[STATE_FOLDER] = folder
            try:
                yield
            finally:
                del os.environ[STATE_FOLDER]


def in_project() -> bool:
    """Return whether the command is in a project; call it after `entered`."""
    return STATE_FOLDER not in os.environ
