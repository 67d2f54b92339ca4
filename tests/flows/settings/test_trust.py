"""Commands on stored models that name a factory: none of it runs before the user has allowed it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dfkd_core.models.storage import save_model
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.cli import app
from dfkd_flows.settings.overrides import apply_overrides
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.settings.trust import allow
from dfkd_tasks.caching.trust import trusted_factories
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles

TEACHER, STUDENT = TeacherFiles("default").network, StudentFiles("default").network
NAME = "command_nets:make"
MODULE = """
from pathlib import Path
from torch import nn

Path("imported").touch()


def make() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
FOREIGN = [
    ["inspect", "--teacher", "foreign"],
    ["layers", "--teacher", "foreign"],
    ["run", "--teacher", "foreign"],
    ["verify", "--teacher", "foreign"],
    ["synthesize", "--teacher", "foreign", "--out", "set"],
    ["export", "--student", "foreign", "--out", "exported"],
]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def _stored(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A project with stored models of a factory, whose module notes that it is imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("command_nets.py").write_text(MODULE)
    source = SourceConfig(model=NAME, in_channels=1, image_size=8)
    classifier = bring_teacher(source, scratch=project).classifier
    for folder in (Path("foreign"), TEACHER, STUDENT):
        save_model(folder, classifier)
    forget()
    yield
    sys.modules.pop("command_nets", None)


def forget() -> None:
    sys.modules.pop("command_nets", None)
    Path("imported").unlink(missing_ok=True)


@pytest.mark.parametrize("command", FOREIGN, ids=lambda command: command[0])
def test_a_foreign_folder__runs_nothing_before_it_is_allowed(command: list[str]) -> None:
    before = Path("params.yaml").read_bytes()
    for options in ([], ["--trust-factory", "other_nets:make"]):
        result = call(*command, *options)
        assert result.exit_code == 1, result.output
        assert f"--trust-factory {NAME}" in result.output
        assert "Traceback" not in result.output
    assert not Path("imported").exists()
    assert Path("params.yaml").read_bytes() == before


def test_a_word__is_remembered_until_the_card_or_the_source_changes() -> None:
    layers = ["layers", "--teacher", "foreign"]
    assert call(*layers, "--trust-factory", NAME).exit_code == 0
    assert call(*layers).exit_code == 0
    export = call("export", "--student", "foreign", "--out", "exported", "--format", "safetensors")
    assert export.exit_code == 0, export.output
    assert "No transfer set" in call("verify", "--teacher", "foreign").output
    forget()
    Path("command_nets.py").write_text(MODULE + "\n# changed\n")
    assert f"--trust-factory {NAME}" in call(*layers).output
    Path("command_nets.py").write_text(MODULE)
    card = json.loads(Path("foreign/config.json").read_text())
    Path("foreign/config.json").write_text(json.dumps({**card, "arguments": {"width": 3}}))
    assert f"--trust-factory {NAME}" in call(*layers).output
    assert not Path("imported").exists()


def test_names_in_params__hold_for_the_models_of_the_project_alone() -> None:
    allow(load_params(), ())
    assert trusted_factories(TEACHER) == ()
    params = apply_overrides(load_params(), ['teacher.source={"model": "command_nets:make", "image_size": 8}'])
    Path("foreign/config.json").write_text(Path("foreign/config.json").read_text() + "\n")
    allow(params, (), Path("foreign"))
    assert trusted_factories(TEACHER) == trusted_factories(STUDENT) == (NAME,)
    assert trusted_factories(Path("foreign")) == ()
    allow(params, [NAME], Path("foreign"))
    assert trusted_factories(Path("foreign")) == (NAME,)
    assert not Path("imported").exists()
