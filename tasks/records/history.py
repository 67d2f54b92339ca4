"""Records of a training: its first weights, and a table of its epochs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfkd_core.common.digests import write_json
from dfkd_core.errors import DfkdError
from dfkd_core.training.loop import EpochRecord
from dfkd_tasks.caching.stored import read_result
from dfkd_tasks.records.tables import write_csv

__all__ = ["read_history", "read_notes", "read_start", "write_history", "write_start"]

_START_FILE = "start.json"


@dataclass(frozen=True, slots=True)
class _Start:
    start: str
    notes: list[str] = field(default_factory=list)


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write a row per epoch: its number, the loss, its terms and the learning rate; without epochs only the header."""
    terms = sorted(history[0].terms) if history else []
    rows = [
        [record.epoch, record.loss, record.learning_rate, *(record.terms[term] for term in terms)] for record in history
    ]
    write_csv(path, ["epoch", "loss", "learning_rate", *terms], rows)


def read_history(path: Path) -> dict[str, tuple[float, ...]]:
    """Return the columns of `write_history` by name, a value per epoch.

    Raises:
        DfkdError: The file is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(stream)
        if header[:1] != ["epoch"]:
            raise ValueError("its first column is not `epoch`")
        columns = {name: tuple(float(row[place]) for row in rows) for place, name in enumerate(header)}
        if not all(map(float.is_integer, columns["epoch"])):
            raise ValueError("its epochs are not whole numbers")
        return columns
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DfkdError(f"{path} cannot be read: {error}. Make it again with: dfkd run") from error


def write_start(folder: Path, start: str, notes: Sequence[str]) -> None:
    """Write into a student's folder whether its first weights were `random` or `pruned`, and notes on its training."""
    write_json(folder / _START_FILE, {"start": start} | ({"notes": list(notes)} if notes else {}))


def read_start(folder: Path) -> str:
    """Return the kind of first weights that `write_start` wrote.

    Raises:
        DfkdError: The file is missing or damaged.
    """
    return read_result(folder / _START_FILE, _Start).start


def read_notes(folder: Path) -> list[str]:
    """Return the notes that `write_start` wrote; none for a folder without its file.

    Raises:
        DfkdError: The file is damaged.
    """
    return read_result(path, _Start).notes if (path := folder / _START_FILE).is_file() else []
