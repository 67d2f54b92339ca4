"""Files that scikit-learn ships for its examples, read without its import, which takes seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["shipped_file"]


def shipped_file(name: str) -> Path:
    """Return the path of a file in the folder `datasets` of the installed scikit-learn.

    Args:
        name: Its path in this folder, such as `images/china.jpg`.

    Raises:
        FileNotFoundError: scikit-learn or the file is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    folders = found.submodule_search_locations if found else None
    paths = [Path(folder, "datasets", name) for folder in folders or ()]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"scikit-learn has no {name}" if paths else "scikit-learn is not installed")
