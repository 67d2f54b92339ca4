"""Reports go to what the user has allowed on this machine, and to nothing else."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dfkd_core.errors import ConfigError
from dfkd_flows.cli import app
from dfkd_flows.doctor.project import check_notify
from dfkd_flows.notify.report import Report, send
from dfkd_flows.notify.trust import trust
from dfkd_flows.settings.notify import NotifyConfig
from dfkd_flows.settings.overrides import changes_between, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params

SCRIPT = "import sys; open('got', 'a').write(sys.stdin.read())"
REPORT = Report(event="rejected", student="small", figures={"student.accuracy": 0.5, "student.ece": math.nan})


def set_notify(**values: Any) -> NotifyConfig:
    """Write values into params.yaml."""
    config = NotifyConfig(**values)
    write_params(changes_between(Params(), Params(notify=config)))
    return config


def notify(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["notify", *arguments])


def test_nothing_is_started_or_sent_before_the_user_allows_it(project: Path, receiver: Any) -> None:
    Path("report.py").write_text(SCRIPT)
    config = set_notify(command=f"{sys.executable} report.py", webhook=receiver.url())
    found = notify()
    assert (found.exit_code, found.output.count("Allow it with: dfkd notify --trust")) == (1, 2)
    assert not receiver.reports
    assert not Path("got").exists()
    assert "never allowed" in " ".join(finding.text for finding in check_notify(load_params()))
    assert notify("--trust").exit_code == 0
    assert "reports failed" in " ".join(finding.text for finding in check_notify(load_params()))
    assert [report["event"] for report in receiver.reports] == ["test"]
    # The figures are numbers: JSON has no other ones.
    assert send(REPORT, config) == []
    assert receiver.reports[1]["figures"] == {"student.accuracy": 0.5}
    assert receiver.reports[1]["project"] == project.name
    # As after `git pull`.
    Path("report.py").write_text(f"{SCRIPT}; print('more')")
    size = Path("got").stat().st_size
    assert "notify.command was never allowed on this machine, or has changed" in notify().output
    assert Path("got").stat().st_size == size
    assert len(receiver.reports) == 3


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        ("{python} -m report", "report.py"),
        ("{python} -m hooks.report", "hooks/report.py"),
        ("{python} hooks", "hooks/report.py"),
        ("sh -c '{python} report.py; true'", "report.py"),
        ("env REPORT=report.py {python} link.py", "report.py"),
        ("{python} ../tools/report.py", "../tools/report.py"),
        ("{python} link.py", "hooks/linked.py"),
    ],
)
def test_file_that_a_command_runs__must_be_allowed_again_after_a_change(
    project: Path, command: str, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = project / "own"
    for name in ("report.py", "hooks/report.py", "hooks/__main__.py", "hooks/linked.py", "../tools/report.py"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("import sys; sys.stdin.read()")
    (own / "link.py").symlink_to("hooks/linked.py")
    (project / ".git").mkdir()
    monkeypatch.chdir(own)
    config = NotifyConfig(command=command.format(python=sys.executable))
    trust(config)
    assert send(REPORT, config) == []
    Path(changed).write_text("open('got', 'w')")
    assert "has changed" in send(REPORT, config)[0]
    assert not Path("got").exists()


def test_link_that_a_pull_turns__must_be_allowed_again(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    for name in ("one.py", "two.py"):
        (outside / name).write_text("import sys; sys.stdin.read()")
    link = Path("report.py")
    link.symlink_to(outside / "one.py")
    config = NotifyConfig(command=f"{sys.executable} report.py")
    trust(config)
    assert send(REPORT, config) == []
    link.unlink()
    link.symlink_to(outside / "two.py")
    assert "has changed" in send(REPORT, config)[0]


def test_results_that_a_command_gets__may_change(project: Path) -> None:
    picture = Path("reports/teachers/default/samples.png")
    picture.parent.mkdir(parents=True)
    picture.write_text("1")
    config = NotifyConfig(command=f"{sys.executable} -c 'import sys; sys.stdin.read()' {picture}")
    trust(config)
    picture.write_text("2")
    assert send(REPORT, config) == []


def test_another_address__must_be_allowed_again(project: Path, receiver: Any) -> None:
    trust(NotifyConfig(webhook=receiver.url("/broken")))
    assert "was never allowed" in send(REPORT, NotifyConfig(webhook=receiver.url()))[0]


def test_address_in_a_variable__stays_out_of_messages(
    project: Path, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = set_notify(webhook="$TEAM_HOOK")
    trust(config)
    assert send(REPORT, config) == [
        "notify.webhook: the environment has no TEAM_HOOK. Set it before the run, or the worker, starts"
    ]
    monkeypatch.setenv("TEAM_HOOK", receiver.url())
    assert send(REPORT, config) == []
    monkeypatch.setenv("TEAM_HOOK", "file:///etc/SECRET")
    [fault] = send(REPORT, config)
    assert "must be an address that begins with http:// or https://" in fault
    assert "SECRET" not in fault


def test_without_settings__the_command_names_one(project: Path) -> None:
    assert "Neither notify.command nor notify.webhook is set" in notify().output


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"command": "python 'report.py"}, "with whole quotes"),
        ({"command": "a\nb"}, "one line"),
        ({"command": "  "}, "one line of words"),
        ({"webhook": "ftp://example.org"}, "begins with http:// or https://"),
        ({"webhook": "example.org/hook"}, "begins with http:// or https://"),
        ({"webhook": "file:///etc/passwd"}, "begins with http:// or https://"),
        ({"webhook": "https://example.org/a b"}, "begins with http:// or https://"),
        ({"webhook": "https://me:secret@example.org"}, "no user and no password"),
        ({"webhook": "https://example.org:port"}, "is no address"),
        ({"webhook": "$1"}, "the name of a variable"),
        ({"events": ("rejectd",)}, "events must be of failed"),
        ({"timeout_s": 0.0}, "greater than 0"),
        ({"timeout_s": 601.0}, "at most 600"),
    ],
)
def test_settings__that_can_report_nothing_are_refused(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        NotifyConfig(**values)
    assert "secret" not in str(caught.value)
