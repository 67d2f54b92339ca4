from __future__ import annotations

from pathlib import Path

from dfkd_core.common.digests import write_atomically
from dfkd_tasks.caching.half_files import clear_half_files


def test_half_files__are_deleted_and_whole_ones_stay(tmp_path: Path) -> None:
    kept = [
        tmp_path / name
        for name in (
            "params.yaml",
            ".gitignore",
            ".env.somename",
            "artifacts/.mine.download",
            "artifacts/teacher/.gitkeep",
        )
    ]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("whole")
    half = []
    for name in (
        "params.yaml",
        "code.json",
        "metrics/default.json",
        "prefect.yaml",
        "artifacts/teacher/model.safetensors",
        "reports/samples.png",
    ):
        with write_atomically(tmp_path / name) as temporary:
            half.append(temporary)
    # As if their processes had been killed.
    for path in half:
        path.write_text("half")
    clear_half_files(tmp_path)
    assert not any(path.exists() for path in half)
    assert all(path.read_text() == "whole" for path in kept if path.name != "params.yaml")
