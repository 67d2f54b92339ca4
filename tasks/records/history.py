"""How a training went: its first weights, and its epochs as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dfkd_core.common.digests import write_json
from dfkd_core.training.loop import EpochRecord
from tasks.records.tables import write_csv

__all__ = ["read_start", "write_history", "write_start"]

_START_FILE = "start.json"


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one row per epoch: its number, the loss and its terms, the learning rate; without epochs the head alone."""
    terms = sorted(history[0].terms) if history else []
    rows = [
        [record.epoch, record.loss, record.learning_rate, *(record.terms[term] for term in terms)] for record in history
    ]
    write_csv(path, ["epoch", "loss", "learning_rate", *terms], rows)


def write_start(folder: Path, start: str) -> None:
    """Note beside a student what its first weights were, `random` or `pruned`."""
    write_json(folder / _START_FILE, {"start": start})


def read_start(folder: Path) -> str:
    """Return what `write_start` noted."""
    return str(json.loads((folder / _START_FILE).read_text(encoding="utf-8"))["start"])
