"""The deployments that a project has: one nightly run per teacher, runs on demand, and the re-evaluation."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from dfkd_core.errors import ConfigError
from dfkd_flows.deploy.forms import pipeline_form, reevaluation_form
from dfkd_flows.session.environment import TELEMETRY_OFF
from dfkd_flows.session.pool import pool_of
from dfkd_flows.settings.hints import closest
from dfkd_flows.settings.params import Params

__all__ = ["TAG", "Deployment", "Schedule", "deployments", "project_tag", "variables"]

TAG = "dfkd"
"""Tag of all deployments that `dfkd deploy` makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When the nightly runs start."""

    cron: str
    timezone: str

    def __post_init__(self) -> None:
        """Refuse what Prefect would refuse, or never run.

        Raises:
            ConfigError: The line of cron or the time zone is not valid.
        """
        # Takes seconds.
        from prefect.client.schemas.schedules import CronSchedule

        if self.timezone not in available_timezones():
            hint = closest(self.timezone, sorted(available_timezones()), otherwise="for example Europe/Berlin or UTC")
            raise ConfigError(f"--timezone: no time zone {self.timezone[:80]!r}; {hint}")
        try:
            # Prefect also takes a sixth field, the seconds.
            minute, hour, day, month, weekday = self.cron.split()
            CronSchedule(cron=" ".join((minute, hour, day, month, weekday)), timezone=self.timezone)
        except ValueError:
            raise ConfigError(
                "--cron takes five fields: minute, hour, day, month, weekday, for example '0 2 * * *', got "
                f"{self.cron[:80]!r}"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A deployment on Prefect's server."""

    flow: str
    name: str
    entrypoint: str
    description: str
    parameters: dict[str, Any]
    form: dict[str, Any]
    schedule: Schedule | None = None

    @property
    def title(self) -> str:
        """Its full name."""
        return f"{self.flow}/{self.name}"


def deployments(params: Params, name: str, schedule: Schedule, *, git_pull: bool) -> list[Deployment]:
    """Return the deployments of a project.

    Args:
        params: Parameters of the project.
        name: Name of the project, which begins the names of the deployments; empty for none.
        schedule: When the nightly runs start.
        git_pull: Whether the nightly runs pull the git repository first.
    """
    pool_of(name)
    found = _all(params, schedule, git_pull)
    return [_named(one, name) for one in found] if name else list(found)


def project_tag() -> str:
    """Return the tag of the deployments of this project: its machine and folder."""
    return f"project:{socket.gethostname()}:{Path.cwd()}"


def variables() -> dict[str, Any]:
    """Return the job variables: flows run in the folder of the project, without telemetry."""
    return {
        "working_dir": str(Path.cwd()),
        "env": {**TELEMETRY_OFF, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    }


def _all(params: Params, schedule: Schedule, git_pull: bool) -> Iterator[Deployment]:
    form = pipeline_form(params)
    entrypoint = "dfkd_flows.pipeline.pipeline"
    for teacher in params.teachers:
        one = len(params.teachers) == 1
        yield Deployment(
            flow="pipeline",
            name="nightly" if one else f"nightly-{teacher}",
            entrypoint=entrypoint,
            description="Fetch results, make what has changed, log, register and promote"
            f"{'' if one else f' the students of {teacher}'}.",
            parameters={"pull": True, "git_pull": git_pull, **({} if one else {"teacher": teacher})},
            form=form,
            schedule=schedule,
        )
    yield Deployment(
        flow="pipeline",
        name="on-demand",
        entrypoint=entrypoint,
        description="As the nightly run, or with other values: then params.yaml stays and nothing is registered.",
        parameters={},
        form=form,
    )
    yield Deployment(
        flow="reevaluate",
        name="reevaluate",
        entrypoint="dfkd_flows.deploy.reevaluation.reevaluate",
        description="Evaluate the champions on other images and log the figures; nothing else changes.",
        parameters={},
        form=reevaluation_form(params),
    )


def _named(one: Deployment, name: str) -> Deployment:
    return replace(one, name=f"{name}-{one.name}")
