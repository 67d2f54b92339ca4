"""A result is published once, wherever a process is killed while it publishes, and if two publish at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.code import PACKAGES

ROOT = Path(__file__).resolve().parents[3]


WHOLE = {
    "runs": ["FINISHED"],
    "versions": ["1"],
    "aliases": ["1", "1"],
    "reason": "first champion, accuracy 0.9000, agreement 0.9500",
    "same_run": True,
    "points_of_run": 3,
    "points_of_model": 3,
    "params_of_model": str(Params().synthesis.num_images),
}


def states(folder: Path, point: str) -> list[Any]:
    """Return what MLflow holds after each publication that went on from a killed one, and after two at once."""
    script = ROOT / "tests/fixtures/publications.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder), point],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_publish__goes_on_after_a_kill_between_the_version_and_its_alias(tmp_path: Path) -> None:
    assert states(tmp_path, "set_registered_model_alias") == [WHOLE]


@pytest.mark.slow
def test_publish__once_after_a_kill_at_any_point_and_if_two_publish(tmp_path: Path) -> None:
    found = states(tmp_path, "all")
    assert len(found) > 15
    assert found == [WHOLE] * len(found)
