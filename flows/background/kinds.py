"""The services of `dfkd up`: the command, the address and the environment of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from dfkd_flows.session.pool import work_of
from dfkd_flows.session.prefect_settings import API_URL
from dfkd_tasks.caching.workspace import STORE
from dfkd_tasks.mlflow_store.addresses import ARTIFACTS

__all__ = ["HOST", "Kind", "mlflow_page", "prefect_server", "prefect_worker"]

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A service that can be started."""

    name: str
    title: str
    """Its name in messages."""
    path: str = ""
    """Path of its address."""
    arguments: tuple[str, ...]
    """Arguments of Python; `{port}` is replaced."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More environment variables; `{port}` is replaced."""
    serves: str = ""
    """Of a worker: the pool and the server that it works for."""

    def command(self, port: int) -> list[str]:
        """Return the command that starts it at a port."""
        return [sys.executable, *(argument.format(port=port) for argument in self.arguments)]

    def variables(self, port: int) -> dict[str, str]:
        """Return its environment variables at a port."""
        return {name: value.format(port=port) for name, value in self.environment.items()}

    def url(self, port: int) -> str:
        """Return its address at a port."""
        return f"http://{HOST}:{port}{self.path}"


def prefect_server() -> Kind:
    """Return Prefect's server, with its scheduler and its pages, over the database of the project."""
    return Kind(
        name="prefect",
        title="Prefect's server",
        path="/api",
        arguments=(
            *("-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", HOST, "--port", "{port}", "--log-level", "warning", "--timeout-graceful-shutdown", "2"),
        ),
        # The pages call the server at this address.
        environment={"PREFECT_UI_API_URL": f"http://{HOST}:{{port}}/api"},
    )


def prefect_worker(pool: str, server: str) -> Kind:
    """Return a worker that runs the flows of a pool, as processes on this machine.

    Args:
        pool: Name of the pool, which is made if the server has none.
        server: Address of the server's API.
    """
    return Kind(
        name="worker",
        title="The worker",
        arguments=(
            *("-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"),
            # A second run in the project would only wait for the first.
            *("--limit", "1", "--with-healthcheck"),
        ),
        environment={
            API_URL: server,
            "PREFECT_WORKER_WEBSERVER_HOST": HOST,
            "PREFECT_WORKER_WEBSERVER_PORT": "{port}",
        },
        serves=work_of(pool, server),
    )


def mlflow_page() -> Kind:
    """Return MLflow's page over the project's own store."""
    return Kind(
        name="mlflow",
        title="MLflow's page",
        arguments=(
            *("-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{STORE}"),
            *("--default-artifact-root", str(ARTIFACTS), "--host", HOST, "--port", "{port}", "--workers", "1"),
        ),
        # Without the processes for jobs of MLflow's language models.
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
