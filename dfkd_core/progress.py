"""Progress reports of long work, independent of their receiver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["OnProgress", "Progress", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report of a piece of work."""

    stage: str
    """Name of the work, for example `distill`."""
    done: int
    """Units finished so far."""
    total: int
    """Units in total."""
    unit: str
    """Name of one unit, for example `images` or `epochs`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures to show next to the count, for example the loss."""


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Drop the report."""
