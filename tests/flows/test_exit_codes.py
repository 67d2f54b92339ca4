"""The exit codes of docs/exit-codes.md, for real where another test does not show them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from dfkd_flows.cli import app

PAGE = (Path(__file__).parents[2] / "docs/exit-codes.md").read_text()
PROJECT_COMMANDS = (
    "compare", "deploy", "export --out new", "history", "notify", "promote", "rollback", "run", "show",
    "stage teacher", "synthesize --teacher default --out new", "tune", "verify",
)  # fmt: skip


def code(command: str) -> int:
    return CliRunner().invoke(app, command.split()).exit_code


def in_the_page(code: int) -> set[str]:
    """Return the commands that the page names in the sentence on a code."""
    [sentence] = re.findall(rf"Code {code} is of [^.]*\.", PAGE.replace("\n", " "))
    return set(re.findall(r"dfkd (\w+)", sentence))


@pytest.mark.parametrize("command", PROJECT_COMMANDS)
def test_fault_in_params_yaml__is_2(project: Path, command: str) -> None:
    Path("params.yaml").write_text("seed: -1\n")
    assert code(command) == 2


@pytest.mark.parametrize("command", PROJECT_COMMANDS)
def test_outside_of_a_project__is_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert code(command) == 2


def test_commands_that_change_results__are_3_while_another_run_works(project: Path) -> None:
    Path(".dfkd").mkdir()
    with FileLock(".dfkd/run.lock"):
        codes = {command.split()[0]: code(command) for command in (*PROJECT_COMMANDS, "publish", "share /tmp/far")}
    assert {name for name, found in codes.items() if found == 3} == in_the_page(3)


def test_without_results__as_in_the_page(project: Path) -> None:
    for command, expected in {"compare": 0, "show": 1, "history": 1, "rollback": 1, "down": 0, "publish": 1}.items():
        assert code(command) == expected, command


def test_unknown_option__is_2_for_every_command(project: Path) -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {name: code(f"{name} --no-such-option") for name in names} == dict.fromkeys(names, 2)
