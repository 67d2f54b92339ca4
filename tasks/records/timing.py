"""Seconds of the core's work per stage. They are stored outside of the results, which stay reproducible."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from dfkd_tasks.caching.workspace import STATE

__all__ = ["clear_seconds", "described_seconds", "keep_seconds", "stage_seconds", "timed"]

_SPAN: TypeAdapter[tuple[float, float]] = TypeAdapter(tuple[FiniteFloat, FiniteFloat])


def _record(stage: str) -> Path:
    return STATE / "timings" / f"{stage}.jsonl"


def clear_seconds(stage: str) -> None:
    """Delete the measurements of `stage`."""
    _record(stage).unlink(missing_ok=True)


def keep_seconds(stage: str, name: str) -> None:
    """Keep the measurements of `stage` under another name, in place of those before; there may be none."""
    with suppress(FileNotFoundError):
        _record(stage).replace(_record(name))


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
    covered, end = 0.0, 0.0
    for first, last in (spans := _spans(_record(stage))):
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return (covered, end) if spans else None


def described_seconds(stage: str) -> str:
    """Return the seconds of `stage` for a table; a stage that has not run here took its result from the cache."""
    measured = stage_seconds(stage)
    return f"{measured[0]:.1f} s" if measured else "from the cache"


def _spans(path: Path) -> list[tuple[float, float]]:
    """Return the measurements in the order of their starts, without lines that a killed process left unfinished."""
    spans = []
    try:
        for line in path.read_bytes().splitlines():
            with suppress(ValidationError):
                spans.append(_SPAN.validate_json(line))
    except OSError:
        return []
    return sorted(spans)
