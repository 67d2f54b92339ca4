from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_core.errors import DfkdError
from dfkd_tasks.dvc_project.status import results_digest


def lock(folder: Path, *, code: str = "c", out: str = "o", epochs: int = 1) -> None:
    stage: dict[str, Any] = {
        "cmd": "dfkd stage distill",
        "deps": [{"path": "dfkd_core/distillation", "md5": code}],
        "params": {"params.yaml": {"distillation": {"epochs": epochs}}},
        "outs": [{"path": "artifacts/students/default", "md5": out}],
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"distill": stage}}))


def test_results_digest__is_of_parameters_and_outputs_and_not_of_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock(tmp_path)
    before = results_digest()
    lock(tmp_path, code="a docstring was edited")
    assert results_digest() == before
    for changed in ({"out": "other"}, {"epochs": 2}):
        lock(tmp_path, **changed)
        assert results_digest() != before


@pytest.mark.parametrize("text", ["", "stages: 3", "stages:\n  distill: {}\n", "{"])
def test_results_digest__of_a_damaged_lock_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(DfkdError, match=r"dvc\.lock cannot be read.*dfkd run"):
        results_digest()
