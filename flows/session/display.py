"""Progress: a bar with rate and time left on a terminal, otherwise a line every few seconds if there is any."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from dfkd_core.progress import Progress

__all__ = ["Display", "agreed", "say"]


def say(text: str = "") -> None:
    """Print a line and flush it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def agreed(question: str) -> bool:
    """Ask a question at the terminal and return whether the answer begins with y; without an answer it is no."""
    try:
        return input(question).strip().lower().startswith("y")
    except EOFError:
        return False


class Display:
    """Shows the progress reports of one stage."""

    def __init__(self, stage: str, *, seconds_between_lines: float = 5.0) -> None:
        """Prepare the display of `stage`."""
        self._stage = stage
        self._seconds_between_lines = seconds_between_lines
        self._bar = _Bar(stage) if sys.stdout.isatty() else None
        self._first: tuple[float, int] | None = None
        self._last_line = 0.0
        self._last_done: int | None = None

    def __enter__(self) -> Self:
        """Start the bar."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show a report."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, progress.done)
        if self._bar:
            self._bar.update(progress)
        elif progress.done != self._last_done and now - self._last_line >= self._seconds_between_lines:
            self._last_line, self._last_done = now, progress.done
            say(f"  {self._line(progress, now)}")

    def _line(self, progress: Progress, now: float) -> str:
        assert self._first is not None
        start, done_before = self._first
        parts = [f"{self._stage}: {progress.done} of {progress.total} {progress.unit}"]
        rate = (progress.done - done_before) / (now - start) if now > start else 0.0
        if rate > 0:
            parts.append(f"{rate:.3g} {progress.unit}/s")
            parts.append(f"{(progress.total - progress.done) / rate:.0f} s left")
        parts += [f"{name} {value:.4g}" for name, value in progress.metrics.items()]
        return ", ".join(parts)


class _Bar:
    def __init__(self, stage: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            transient=True,
        )
        self._task = self._rich.add_task(stage, total=None, unit="", rate="", metrics="")

    def start(self) -> None:
        self._rich.start()

    def stop(self) -> None:
        self._rich.stop()

    def update(self, progress: Progress) -> None:
        speed = self._rich.tasks[0].speed
        self._rich.update(
            self._task,
            completed=progress.done,
            total=progress.total,
            unit=progress.unit,
            rate=f"{speed:.3g}/s" if speed else "",
            metrics=" ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items()),
        )
