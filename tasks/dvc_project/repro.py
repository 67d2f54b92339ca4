"""A process that runs `dvc repro` and prints only the output of the stages and errors."""

from __future__ import annotations

import logging
import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo

__all__ = ["main"]


def main(*stages: str) -> None:
    """Reproduce the named stages and those before them, by default all; exit with a message if that fails."""
    # DVC's own --quiet also hides errors.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo() as repo:
            repo.reproduce(targets=stages or None)
    except DvcException as error:
        sys.exit(f"dvc: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
