from __future__ import annotations

import pytest

from dfkd_core.progress import Progress
from dfkd_flows.session.display import Display


def show(*done: int, seconds: float = 0.0) -> None:
    display = Display("synthesize", seconds_between_lines=seconds)
    with display:
        for count in done:
            display.show(Progress(stage="synthesize", done=count, total=400, unit="images"))


def test_display__prints_a_line_only_when_the_count_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    show(0, 0, 0, 100, 100, 400)
    counts = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert counts == ["0", "100", "400"]


def test_display__prints_no_second_line_within_the_time_between_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show(0, 100, 200, seconds=60)
    assert len(capsys.readouterr().out.splitlines()) == 1
