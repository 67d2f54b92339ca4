"""The epochs of a training as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfkd_core.training import EpochRecord
from tasks.tables import write_csv

__all__ = ["write_history"]


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one row per epoch: its number, the loss and its terms, the learning rate; without epochs the head alone."""
    terms = sorted(history[0].terms) if history else []
    rows = [
        [record.epoch, record.loss, record.learning_rate, *(record.terms[term] for term in terms)] for record in history
    ]
    write_csv(path, ["epoch", "loss", "learning_rate", *terms], rows)
