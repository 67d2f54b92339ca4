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
    "models": 1,
    "versions": ["1"],
    "aliases": {"champion": "1", "challenger": "1"},
    "promoted": ["true"],
    "reason": "first champion, accuracy 0.9000, agreement 0.9000",
    "same_reason": True,
    "rules": True,
    "described": ["digits lenet5→lenet5 random", True],
    "inputs": 2,
    "same_run": True,
    "points_of_run": 3,
    "points_of_model": 3,
    "params_of_model": str(Params().synthesis.num_images),
}
TWICE = {**WHOLE, "runs": ["FINISHED"] * 2, "models": 2, "versions": ["2", "1"]}
BETTER = {
    **TWICE,
    "aliases": {"champion": "2", "challenger": "2", "previous": "1"},
    "promoted": ["true", "true"],
    "reason": "accuracy 0.9500 against the champion's 0.9000 (version 1): +0.0500, at least +0.0465 at 95 % confidence "
    "on the same 10000 images; within registry.margin 0.01",
}
WORSE = {
    **TWICE,
    "aliases": {"champion": "1"},
    "promoted": ["false", "true"],
    "reason": "refused: accuracy 0.8500 is less than 0.9 of the teacher's 1.0000 (registry.min_accuracy_share); "
    "accuracy 0.8500 against the champion's 0.9000 (version 1): -0.0500, at least -0.0537 at 95 % confidence on the "
    "same 10000 images; not within registry.margin 0.01",
}
WHOLES = {"first": WHOLE, "better": BETTER, "worse": WORSE}


def states(folder: Path, scenario: str, point: str) -> list[Any]:
    """Return what MLflow holds after each publication that went on from a killed one, and after two at once."""
    script = ROOT / "tests/fixtures/publications.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder), scenario, point],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_publish__goes_on_after_a_kill_between_the_version_and_its_aliases(tmp_path: Path) -> None:
    assert states(tmp_path, "better", "set_registered_model_alias") == [BETTER]


@pytest.mark.slow
def test_publish__takes_the_alias_of_a_refused_version_after_a_kill_before_that(tmp_path: Path) -> None:
    assert states(tmp_path, "worse", "delete_registered_model_alias") == [WORSE]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", WHOLES)
def test_publish__once_after_a_kill_at_any_point_and_if_two_publish(tmp_path: Path, scenario: str) -> None:
    found = states(tmp_path, scenario, "all")
    assert len(found) > 15
    assert found == [WHOLES[scenario]] * len(found)
