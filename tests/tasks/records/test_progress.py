from pathlib import Path

import pytest

from dfkd_core.progress import Progress
from dfkd_tasks.records.progress import count_noted, listening, noting, report


def progress(done: int) -> Progress:
    return Progress(stage="synthesize", done=done, total=4, unit="images")


def test_report__goes_to_those_who_listen() -> None:
    heard: list[Progress] = []
    with listening(heard.append):
        report(progress(1))
    report(progress(2))
    assert [item.done for item in heard] == [1]


def test_noting__can_be_summed_by_others(tmp_path: Path) -> None:
    with noting(tmp_path / "a.progress", 100) as note:
        note(progress(1))
        assert count_noted(tmp_path) == 25
    with noting(tmp_path / "b.progress", 50):
        assert count_noted(tmp_path) == 100
    assert count_noted(tmp_path) == 150


def test_noting__failed_work_counts_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with noting(tmp_path / "a.progress", 100) as note:
            note(progress(1))
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert count_noted(tmp_path) == 0
