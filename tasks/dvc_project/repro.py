"""`dvc repro` that prints what the stages print, and errors, but nothing of its own; run as a process."""

from __future__ import annotations

import logging
import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo

__all__ = ["main"]


def main(*stages: str) -> None:
    """Bring stages and those before them up to date, every one if none is named; exits with a message if that fails."""
    # DVC's own --quiet would hide errors too.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo() as repo:
            repo.reproduce(targets=stages or None)
    except DvcException as error:
        sys.exit(f"dvc: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
