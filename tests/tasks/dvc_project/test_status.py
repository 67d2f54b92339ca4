import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code import PACKAGES, code_digest
from dfkd_tasks.dvc_project.status import changed_stages, dvc_program, results_digest

STAGE = "distill@small"


def lock(folder: Path, *, code: str = "c", out: str = "o", epochs: int = 1, own: dict[str, Any] | None = None) -> None:
    stage: dict[str, Any] = {
        "cmd": "dfkd stage distill",
        "deps": [{"path": "dfkd_core/distillation", "md5": code}],
        # A checkout has the folders of the code among the deps, another project the digest among the parameters.
        "params": {
            "params.yaml": {"distillation": {"epochs": epochs}, "students.small": own},
            "code.json": {"distill": code},
        },
        "outs": [{"path": "artifacts/students/default", "md5": out}],
    }
    digests = {"cmd": "dfkd stage code", "outs": [{"path": "code.json", "md5": code}]}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"code": digests, STAGE: stage}}))


def test_results_digest__is_of_parameters_and_outputs_and_not_of_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock(tmp_path)
    before = results_digest([STAGE])
    lock(tmp_path, code="a docstring was edited")
    assert results_digest([STAGE]) == before
    for changed in ({"out": "other"}, {"epochs": 2}):
        lock(tmp_path, **changed)
        assert results_digest([STAGE]) != before


def test_results_digest__counts_what_a_student_changes_in_the_sections_that_its_stage_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock(tmp_path, epochs=2)
    before = results_digest([STAGE])
    lock(tmp_path, own={"teacher": "default", "distillation": {"epochs": 2}, "evaluation": {"num_bins": 3}})
    assert results_digest([STAGE]) == before
    lock(tmp_path, epochs=2, own={"distillation": {"epochs": 3}})
    assert results_digest([STAGE]) != before


def test_results_digest__is_none_before_the_stage_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock(tmp_path)
    assert results_digest([STAGE, "evaluate@small"]) is None


@pytest.mark.parametrize("text", ["", "stages: 3", "stages:\n  distill@small: {}\n", "{"])
def test_results_digest__of_a_damaged_lock_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(DfkdError, match=r"dvc\.lock cannot be read.*dfkd run"):
        results_digest([STAGE])


def test_changed_stages__in_a_project_without_code_follow_the_installed_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    command = f"{sys.executable} -c 'from dfkd_flows.cli import main; main()' stage code"
    code = {"cmd": command, "always_changed": True, "outs": [{"code.json": {"cache": False, "persist": True}}]}
    distill = {"cmd": "echo > made.txt", "params": [{"code.json": ["distill"]}], "outs": ["made.txt"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"code": code, "distill": distill}}))
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    subprocess.run(dvc_program("repro"), check=True)
    written = (tmp_path / "code.json").read_bytes()
    assert json.loads(written)["distill"] == code_digest("distill")
    assert changed_stages() == []
    # As if results of an earlier version were there, and code.json of a colleague.
    (tmp_path / "dvc.lock").write_text((tmp_path / "dvc.lock").read_text().replace(code_digest("distill"), "0" * 64))
    (tmp_path / "code.json").write_text("{}")
    assert changed_stages() == ["distill"]
    assert (tmp_path / "code.json").read_bytes() == written
