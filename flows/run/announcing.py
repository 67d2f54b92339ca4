"""What a flow of the pipeline reports at its end; Prefect calls this as a hook of the flow's state."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.notify.report import Report, send
from dfkd_flows.run.figures import student_figures
from dfkd_flows.run.outcome import Made, NotGreenError, is_dropped
from dfkd_flows.session.environment import enter_project
from dfkd_flows.session.services import flow_page
from dfkd_flows.settings.notify import NotifyConfig
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_notify, load_params
from dfkd_flows.shown.names import data_label, run_name, student_label, teacher_label
from dfkd_flows.shown.parent import reason_of
from dfkd_tasks.mlflow_store.addresses import version_page

if TYPE_CHECKING:
    from dfkd_tasks.mlflow_store.publishing import Publication

__all__ = ["announce"]


def announce(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Report the end of a run to the command and the address of params.yaml.

    A report that fails is logged; it changes no result and no state.
    """
    faults: list[str] = []
    try:
        made = _made(state)
        params, config = (made.params, made.params.notify) if made else _read()
        for report in _reports(made, params, state, flow_page(str(flow_run.id))):
            if report.event in config.events:
                faults += send(report, config)
    except DfkdError as error:
        faults.append(str(error))
    logger = flow_run_logger(flow_run, flow)
    for fault in dict.fromkeys(faults):
        logger.log(logging.ERROR, "The run was not reported. %s", fault)


def _read() -> tuple[Params | None, NotifyConfig]:
    """Return the project's parameters, None if these are what is wrong, and the section `notify`."""
    enter_project()
    try:
        params = load_params()
    except ConfigError:
        return None, load_notify()
    return params, params.notify


def _made(state: State[Any]) -> Made | None:
    """Return what a run made, None if it ended before."""
    if not state.is_completed() and not state.is_failed():
        # The state of a process that was ended has no result, and reading it would block Prefect's own process.
        return None
    found = state.result(raise_on_failure=False)
    if isinstance(found, NotGreenError):
        return found.made
    return found if isinstance(found, Made) else None


def _reports(made: Made | None, params: Params | None, state: State[Any], page: str) -> Iterator[Report]:
    name = state.name or ""
    links = {"prefect": page} if page else {}
    if made is None or params is None:
        yield Report(event="failed", state=name, **_whole(params), reasons=(reason_of(state),), links=links)
        return
    if made.faults:
        yield Report(event="not_delivered", state=name, **_whole(params), reasons=made.faults, links=links)
    for student in made.failed:
        reasons = (f"its stages failed. Continue with: dfkd run {student}",)
        yield Report(event="failed", state=name, **_about(params.for_student(student)), reasons=reasons, links=links)
    for student, found in made.published.items():
        if event := _event(found):
            yield _of_student(event, name, params.for_student(student), found, links)


def _event(found: Publication) -> str:
    """Return the event of a student's publication, empty if there is nothing to report."""
    if found.refused:
        return "dropped" if is_dropped(found) else "rejected"
    return "promoted" if found.promoted and not found.is_earlier else ""


def _of_student(event: str, state: str, params: Params, found: Publication, links: dict[str, str]) -> Report:
    pages = {"run": found.page, "version": version_page(found.model, found.version)}
    figures: dict[str, float] = {}
    with suppress(DfkdError):
        figures = student_figures(params)
    return Report(
        event=event,
        state=state,
        **_about(params),
        model=found.model,
        version=found.version,
        champion=found.champion,
        figures=figures,
        reasons=(found.reason, *found.rules),
        links=links | {name: page for name, page in pages.items() if page},
    )


def _about(params: Params) -> dict[str, Any]:
    return {
        "teacher": teacher_label(params),
        "student": student_label(params),
        "data": data_label(params.data.dataset),
    }


def _whole(params: Params | None) -> dict[str, Any]:
    """Return the names of the only student, or the name of a run over several; nothing if they are not known."""
    if params is None:
        return {}
    if len(params.students) == 1:
        return _about(params.for_student(*params.students))
    return {"student": run_name(params)}
