"""The offer of `dfkd run` to make a project if there is none."""

from __future__ import annotations

import sys

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.project.wishes import Wishes
from dfkd_flows.session.display import agreed

__all__ = ["make_project_if_agreed"]


def make_project_if_agreed(wishes: Wishes, *, yes: bool) -> None:
    """Make a project in the current folder if the user agrees, with `yes` or on the terminal.

    Raises:
        ConfigError: There is no terminal for the question.
        DfkdError: The user does not agree, or as `make_project`.
    """
    if not yes:
        _ask(wishes)
    # Imported after the question, as it takes seconds.
    from dfkd_flows.project.layout import make_project

    make_project(wishes.here, wishes)


def _ask(wishes: Wishes) -> None:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{wishes.here} is in no project. Make one here and run it with: dfkd run --yes and the same options"
        )
    question = (
        f"{wishes.here} is in no project. Make one here (params.yaml, dvc.yaml, prefect.yaml, code.json, README.md, "
        ".dvc, and git if there is no repository) and run it? [y/N] "
    )
    if not agreed(question):
        raise DfkdError("Nothing was written. Make a project in another folder with: dfkd init FOLDER")
