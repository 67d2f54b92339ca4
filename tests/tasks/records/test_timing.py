import json
from pathlib import Path

import pytest

from dfkd_tasks.records.timing import clear_seconds, stage_seconds, timed


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_stage_seconds__counts_overlapping_work_once() -> None:
    path = Path(".dfkd/timings/synthesize.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, [[10.0, 13.0], [11.0, 12.0], [12.5, 14.0], [20.0, 21.0]])))
    assert stage_seconds("synthesize") == (5.0, 21.0)


def test_timed__is_added_and_cleared() -> None:
    assert stage_seconds("teacher") is None
    with timed("teacher"):
        pass
    measured = stage_seconds("teacher")
    assert measured is not None
    assert measured[0] < 1
    clear_seconds("teacher")
    assert stage_seconds("teacher") is None
