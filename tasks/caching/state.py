"""The folder of the state: the project's, or that of a command outside of a project. Nothing here imports torch."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["STATE_FOLDER", "state_folder"]

STATE_FOLDER = "DFKD_STATE"
"""Environment variable with the folder for a command outside of a project."""


def state_folder() -> Path:
    """Return the folder in which the command keeps what it notes."""
    return Path(os.environ.get(STATE_FOLDER, ".dfkd"))
