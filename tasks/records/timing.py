"""Seconds of the core's work per stage. They are stored outside of the results, which stay reproducible."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.caching.workspace import STATE

__all__ = ["clear_seconds", "stage_seconds", "timed"]


def _record(stage: str) -> Path:
    return STATE / "timings" / f"{stage}.jsonl"


def clear_seconds(stage: str) -> None:
    """Delete the measurements of `stage`."""
    _record(stage).unlink(missing_ok=True)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Measure the block as work of `stage`; several processes may measure at once."""
    start = time.time()
    yield
    path = _record(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps([start, time.time()]) + "\n")


def stage_seconds(stage: str) -> tuple[float, float] | None:
    """Return the seconds during which at least one process worked on `stage`, and the time of the last end.

    None if the stage has not run here, for example because DVC had its result.
    """
    try:
        lines = _record(stage).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    covered, end = 0.0, 0.0
    for first, last in sorted(json.loads(line) for line in lines):
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return covered, end
