"""`dfkd deploy`: makes and updates the pool and the deployments, and removes those of teachers that are gone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfkd_core.errors import DfkdError
from dfkd_flows.deploy.plan import TAG, Deployment, Schedule, deployments, project_tag, variables
from dfkd_flows.session.display import say
from dfkd_flows.session.pool import deployed_name, keep_name, pool_of, work_of
from dfkd_flows.session.prefect_settings import Address, find_address, users_address
from dfkd_flows.session.services import check_server
from dfkd_flows.settings.params import Params
from dfkd_tasks.processes.background import running
from dfkd_tasks.records.foreign import naming, without_secrets

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

__all__ = ["deploy_project", "show_plan"]


def show_plan(params: Params, schedule: Schedule, *, name: str | None, git_pull: bool) -> None:
    """Print what `deploy_project` would make."""
    name = deployed_name() if name is None else name
    say(f"Work pool {pool_of(name)}")
    for one in deployments(params, name, schedule, git_pull=git_pull):
        say(_line(one))


def deploy_project(params: Params, schedule: Schedule, *, name: str | None, git_pull: bool) -> None:
    """Make or update the pool and the deployments on the server in use.

    Args:
        params: Parameters of the project.
        schedule: When the nightly runs start.
        name: Name of the project on a server that others share; None takes that of the last deployment.
        git_pull: Whether the nightly runs pull the git repository first.

    Raises:
        DfkdError: No server is in use, it cannot be used, or it has other deployments of these names.
    """
    name = deployed_name() if name is None else name
    wanted = deployments(params, name, schedule, git_pull=git_pull)
    server = find_address()
    if server is None:
        raise DfkdError("No Prefect server is in use. Start one with: dfkd up (or set PREFECT_API_URL to your own)")
    check_server()
    with naming(f"The Prefect server at {without_secrets(server.url)} refuses"):
        _deploy(wanted, pool_of(name), server)
    keep_name(name)
    say(_next(pool_of(name), server))


def _deploy(wanted: Sequence[Deployment], pool: str, server: Address) -> None:
    # Takes seconds.
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        present = _present(client)
        _check_names(wanted, present, pool)
        _make_pool(client, pool)
        for one in wanted:
            _make(client, one, pool)
            say(_line(one))
        titles = {one.title for one in wanted}
        for title, gone in present.items():
            if title not in titles and _is_own(gone):
                client.delete_deployment(gone.id)
                say(f"  {title}: removed")


def _present(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Return the deployments of the server by their full names."""
    found: list[DeploymentResponse] = []
    while page := client.read_deployments(offset=len(found), limit=200):
        found += page
    flows = {one.flow_id: client.read_flow(one.flow_id).name for one in found}
    return {f"{flows[one.flow_id]}/{one.name}": one for one in found}


def _is_own(one: DeploymentResponse) -> bool:
    """Return whether a deployment is of this project; on the server of `dfkd up` there is no other one."""
    return TAG in one.tags and (users_address() is None or project_tag() in one.tags)


def _check_names(wanted: Sequence[Deployment], present: dict[str, DeploymentResponse], pool: str) -> None:
    """Refuse to replace deployments of others, or to share a pool with them: its worker runs in one folder."""
    if users_address() is None:
        return
    titles = {one.title for one in wanted}
    for title, other in present.items():
        if (title in titles or other.work_pool_name == pool) and not _is_own(other):
            owner = next((tag.partition(":")[2] for tag in other.tags if tag.startswith("project:")), "somebody else")
            raise DfkdError(
                f"The server has a deployment {title} in the pool {other.work_pool_name}, of {owner}. Nothing was "
                "changed. Give this project a name there: dfkd deploy --name NAME (or delete the other one: prefect "
                f"deployment delete {title})"
            )


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=1)
        )
        return
    if pool.type != "process":
        raise DfkdError(
            f"The pool {name} is of type {pool.type}, and dfkd needs process. Use another: dfkd deploy --name NAME"
        )
    if pool.concurrency_limit is None:
        # One run at a time in a project.
        client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=1))


def _make(client: SyncPrefectClient, one: Deployment, pool: str) -> None:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    when = one.schedule
    schedules = (
        [DeploymentScheduleCreate(schedule=CronSchedule(cron=when.cron, timezone=when.timezone), active=True)]
        if when
        else []
    )
    client.create_deployment(
        flow_id=client.create_flow_from_name(one.flow),
        name=one.name,
        entrypoint=one.entrypoint,
        description=one.description,
        parameters=one.parameters,
        parameter_openapi_schema=one.form,
        enforce_parameter_schema=True,
        schedules=schedules,
        concurrency_limit=1,
        tags=[TAG, project_tag()],
        work_pool_name=pool,
        job_variables=variables(),
        path=variables()["working_dir"],
    )


def _line(one: Deployment) -> str:
    when = f"{one.schedule.cron} {one.schedule.timezone}" if one.schedule else "on demand"
    given = ", ".join(f"{name}={json.dumps(value)}" for name, value in one.parameters.items())
    return f"  {one.title:<28} {when:<22} {given}".rstrip()


def _next(pool: str, server: Address) -> str:
    """Return the pages of the deployments, and how their runs get a worker."""
    pages = without_secrets(server.url).removesuffix("/api")
    worker = running("worker")
    lines = [f"Deployed. Forms and runs: {pages}/deployments"]
    if worker is None or worker.serves != work_of(pool, server.url):
        lines.append("No worker of this project takes the runs yet. Start one with: dfkd up")
    return "\n".join(lines)
