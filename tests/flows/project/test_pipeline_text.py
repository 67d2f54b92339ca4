"""dvc.yaml of a checkout and of a project without code: the same stages, with other dependencies on the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_flows.project.pipeline_text import TEMPLATES, checkout_pipeline, project_pipeline
from dfkd_flows.settings.params import Params

ROOT = Path(__file__).resolve().parents[3]
CHECKOUT: dict[str, Any] = yaml.safe_load(checkout_pipeline())["stages"]
PROJECT: dict[str, Any] = yaml.safe_load(project_pipeline(Params()))["stages"]


@pytest.mark.parametrize(
    ("file", "template"),
    [("prefect.yaml", "prefect.yaml"), (".dvc/config", "dvc_config")],
)
def test_files_of_the_checkout__are_made_from_the_templates(file: str, template: str) -> None:
    assert (ROOT / file).read_text() == (TEMPLATES / template).read_text()


def test_dvc_yaml_of_the_checkout__is_made_from_the_template() -> None:
    assert (ROOT / "dvc.yaml").read_text() == checkout_pipeline()


@pytest.mark.parametrize("stage", CHECKOUT)
def test_project_pipeline__depends_on_the_digest_in_place_of_the_code(stage: str) -> None:
    expected, found = (stages[stage].get("do", stages[stage]) for stages in (dict(CHECKOUT), PROJECT))
    deps = [dep for dep in expected["deps"] if dep.startswith("artifacts/")]
    assert len(deps) < len(expected["deps"])
    assert found == {
        **{key: value for key, value in expected.items() if key != "deps"},
        **({"deps": deps} if deps else {}),
        "params": [*expected["params"], {"code.json": [stage]}],
    }


def test_project_pipeline__begins_with_the_stage_that_writes_the_digests() -> None:
    assert list(PROJECT) == ["code", *CHECKOUT]
    assert PROJECT["code"]["always_changed"] is True
    assert PROJECT["code"]["outs"] == [{"code.json": {"cache": False, "persist": True}}]
