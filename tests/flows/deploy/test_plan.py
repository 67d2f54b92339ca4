"""What `dfkd deploy` makes: names, schedules and forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate
from typer.testing import CliRunner

from dfkd_core.errors import ConfigError
from dfkd_flows.cli import app
from dfkd_flows.deploy.plan import Schedule, deployments
from dfkd_flows.pipeline import pipeline
from dfkd_flows.settings.overrides import apply_overrides, preset_names
from dfkd_flows.settings.params import Params

NIGHT = Schedule(cron="0 2 * * *", timezone="UTC")
SEVERAL = apply_overrides(Params(), ["teachers.tall={}", "students.small={teacher: tall}"])


def form_of(flow: str, params: Params = SEVERAL) -> dict[str, Any]:
    return next(one.form for one in deployments(params, "", NIGHT, git_pull=False) if one.flow == flow)


def test_one_teacher__has_one_nightly_run() -> None:
    found = {one.title: one for one in deployments(Params(), "", NIGHT, git_pull=True)}
    assert list(found) == ["pipeline/nightly", "pipeline/on-demand", "reevaluate/reevaluate"]
    assert found["pipeline/nightly"].parameters == {"pull": True, "git_pull": True}
    assert [one.title for one in found.values() if one.schedule] == ["pipeline/nightly"]


def test_several_teachers__have_a_nightly_run_each() -> None:
    found = {one.name: one for one in deployments(SEVERAL, "shop", NIGHT, git_pull=False)}
    assert list(found) == ["shop-nightly-default", "shop-nightly-tall", "shop-on-demand", "shop-reevaluate"]
    assert found["shop-nightly-tall"].parameters["teacher"] == "tall"


def test_forms__have_the_parameters_of_the_flows_and_their_own_values_are_valid() -> None:
    assert form_of("pipeline")["properties"].keys() == pipeline.parameters.properties.keys()
    for one in deployments(SEVERAL, "", NIGHT, git_pull=True):
        assert one.parameters.keys() <= one.form["properties"].keys()
        validate(one.parameters, one.form, raise_on_error=True, ignore_required=True)


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"teacher": "nobody"},
        {"students": ["nobody"]},
        {"students": ["small", "small"]},
        {"students": "small"},
        {"preset": "slow"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": "many"},
        {"num_images": -1},
        {"overrides": ["synthesis"]},
        {"git_pull": "yes"},
    ],
)
def test_form__refuses(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate(values, form_of("pipeline"), raise_on_error=True, ignore_required=True)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"teacher": "tall", "students": ["small"], "epochs": 3, "num_images": 100, "pull": False},
        {"teacher": None, "students": None, "preset": None, "epochs": None, "overrides": None},
        {"overrides": ["synthesis.method=dirichlet", "seed=1"]},
        *({"preset": name} for name in preset_names()),
    ],
)
def test_form__allows(values: dict[str, Any]) -> None:
    validate(values, form_of("pipeline"), raise_on_error=True, ignore_required=True)


@pytest.mark.parametrize("cron", ["", "2", "0 2 * *", "0 25 * * *", "nightly", "0 2 * * * *", "@x"])
def test_schedule__refuses_what_is_no_line_of_cron(cron: str) -> None:
    with pytest.raises(ConfigError, match="--cron takes five fields"):
        Schedule(cron=cron, timezone="UTC")


def test_schedule__hints_at_the_time_zone() -> None:
    with pytest.raises(ConfigError, match=r"no time zone 'Europe/Berln'; did you mean Europe/Berlin\?"):
        Schedule(cron="0 2 * * *", timezone="Europe/Berln")


def test_show__changes_nothing(project: Path) -> None:
    shown = CliRunner().invoke(app, ["deploy", "--show", "--name", "shop", "--cron", "30 1 * * 1-5"])
    assert shown.exit_code == 0, shown.output
    assert "Work pool dfkd-shop" in shown.output
    assert "pipeline/shop-nightly" in shown.output
    assert "30 1 * * 1-5 UTC" in shown.output
    assert not (project / ".dfkd/deployed.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "No Prefect server is in use. Start one with: dfkd up"),
        (["--name", "My Shop"], "--name takes 1 to 32 lower-case letters"),
        (["--cron", "daily"], "--cron takes five fields"),
    ],
)
def test_deploy__is_refused_with_a_next_step(project: Path, arguments: list[str], text: str) -> None:
    found = CliRunner().invoke(app, ["deploy", *arguments])
    assert found.exit_code in (1, 2)
    assert text in found.output


def test_deploy__names_a_server_that_does_not_answer(
    project: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://user:secret@127.0.0.1:{closed_port}/api")
    found = CliRunner().invoke(app, ["deploy"])
    assert found.exit_code == 1
    assert f"No Prefect server answers at PREFECT_API_URL=http://127.0.0.1:{closed_port}/api" in found.output
    assert "secret" not in found.output
