"""The user's Prefect server: whether it can take a run, found before the work, and the page of a flow's run."""

from __future__ import annotations

import hashlib
import os

from dfkd_core.errors import DfkdError
from dfkd_flows.session.prefect_settings import users_address
from dfkd_flows.session.server import OWN_URL, named_server
from dfkd_tasks.records.foreign import reason, without_secrets

__all__ = ["check_server", "described_server", "flow_page", "flows_command", "server_key"]


def check_server() -> None:
    """Check that a server of the user's can take the flows of a run, if there is one.

    Raises:
        DfkdError: It does not answer, is of another major version, or refuses the user.
    """
    server = named_server()
    if server is None:
        return
    server.wait()
    # Takes seconds, and a run needs it anyway.
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
            client.request("POST", "/flows/filter", json={"limit": 1}).raise_for_status()
    except Exception as error:
        raise DfkdError(
            f"The Prefect server at {server.described()} cannot be used: {reason(error)}. Correct this, or "
            f"{server.undo()}"
        ) from error


def server_key() -> str:
    """Return a word for the server in use; empty for those of the project, which share one database."""
    users = users_address()
    if users is None or users.url == os.environ.get(OWN_URL):
        return ""
    return f"{hashlib.sha256(users.url.rstrip('/').encode()).hexdigest()[:16]}-"


def described_server() -> str:
    """Return which Prefect server a run uses, without passwords."""
    server = named_server()
    return server.described() if server else "a server of its own, which ends with the run"


def flows_command() -> str:
    """Return the command that shows Prefect's pages, the address of the pages if the user's server shows them."""
    server = named_server()
    if server:
        return without_secrets(server.url).removesuffix("/api")
    return "PREFECT_HOME=.dfkd/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 prefect server start"


def flow_page(flow_run_id: str) -> str:
    """Return the address of a flow run's page, empty if the server ends with the run."""
    if named_server() is None:
        return ""
    from prefect.utilities.urls import url_for

    return without_secrets(url_for("flow-run", flow_run_id) or "")
