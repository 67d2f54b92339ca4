"""What a page shows. All texts may come from outside, so the page escapes them.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dfkd_core.evaluation.disagreements import Disagreements
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.transfer_set.summary import SetSummary

__all__ = [
    "UNKNOWN",
    "Answer",
    "Comparison",
    "Entry",
    "FigureRow",
    "History",
    "Number",
    "Rule",
    "RunRow",
    "StageRow",
    "StudentReport",
    "Verdict",
]

Answer = Literal["ship", "care", "hold", "open"]
"""Ship, ship although a rule is broken, do not ship, not decided."""

Entry = tuple[str, str]
"""A name and a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A figure."""

    text: str
    """As the command line prints it."""
    value: float | None = None
    """Its exact value, as in metrics.json; None if it is not known."""
    within: str = ""
    """Its interval of 95 %; empty if it has none."""


UNKNOWN = Number(text="–")


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureRow:
    """A figure of the three models."""

    name: str
    meaning: str
    teacher: Number = UNKNOWN
    student: Number = UNKNOWN
    champion: Number = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The outcome of one rule of the promotion."""

    holds: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to ship the student."""

    answer: Answer
    title: str
    sentences: tuple[str, ...]
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A training, epoch by epoch."""

    epochs: tuple[int, ...]
    losses: Mapping[str, tuple[float, ...]]
    """The loss and its terms by name, a value per epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """The time of a stage."""

    name: str
    seconds: str
    rate: str
    """Images per second, empty if they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentReport:
    """The facts of one student's page."""

    title: str
    data: str
    """Short name of the evaluated images."""
    is_proxy: bool
    """Whether no real images were given."""
    verdict: Verdict
    champion: str
    """Heading of the champion's column."""
    rows: tuple[FigureRow, ...]
    warnings: tuple[str, ...]
    class_names: tuple[str, ...]
    """Names of the k classes."""
    predictions: Predictions
    num_bins: int
    """Bins of the calibration error."""
    disagreements: Disagreements | None
    transfer_set: SetSummary | None
    real_axes: np.ndarray
    """Features of real images on the first two axes of the feature model, float32 [m, 2]."""
    histories: Mapping[str, History]
    """By the words for the model: teacher and student."""
    stages: tuple[StageRow, ...]
    machine: tuple[Entry, ...]
    versions: tuple[Entry, ...]
    lineage: tuple[Entry, ...]
    settings: tuple[Entry, ...]
    """Settings that differ from the defaults."""
    command: str
    """Line of a shell that repeats the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run among several."""

    name: str
    link: str = ""
    """Relative path of its page, empty if it has none."""
    is_proxy: bool = False
    accuracy: Number = UNKNOWN
    """Accuracy, or agreement on synthetic images for a proxy."""
    interval: tuple[float, float] | None = None
    seconds: Number = UNKNOWN
    size: Number = UNKNOWN
    """In bytes."""
    others: tuple[Number, ...] = ()
    """Further figures, in the order of the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The facts of a page on several runs."""

    title: str
    columns: tuple[str, ...]
    """Names of the further figures."""
    rows: tuple[RunRow, ...] = field(default=())
