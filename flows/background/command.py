"""`dfkd up` and `dfkd down`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from filelock import FileLock

from dfkd_core.common.digests import write_json
from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.background.kinds import Kind, mlflow_page, prefect_server, prefect_worker
from dfkd_flows.background.runs import ended_runs
from dfkd_flows.background.starting import Starting, start
from dfkd_flows.session.display import agreed, say
from dfkd_flows.session.environment import check_writable
from dfkd_flows.session.pool import deployed_name, pool_of
from dfkd_flows.session.prefect_settings import Address, users_address
from dfkd_flows.session.run_notes import of_ended
from dfkd_flows.session.server import NamedServer
from dfkd_tasks.mlflow_store.addresses import described_store, is_own_store, page_command
from dfkd_tasks.processes.background import SERVICES, end, leftovers, note_of, running
from dfkd_tasks.records.foreign import naming, without_secrets

__all__ = ["start_services", "stop_services"]

_TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "worker": "Worker"}
# The server takes the report of the worker's end.
_ORDER_OF_THE_END = ("worker", "mlflow", "prefect")


def start_services() -> None:
    """Start the services of the project that do not run yet, wait until each answers, and print their links.

    Services that the user has set up elsewhere are used and not started.

    Raises:
        DfkdError: One does not start, or a server of the user's does not answer; the others stay.
    """
    check_writable()
    with _one_at_a_time():
        users = users_address()
        if users:
            NamedServer(users).wait()
        page = start(mlflow_page()) if is_own_store() else None
        server = None if users else _answering(start(prefect_server()))
        _end_lost_runs(_url(server, users))
        worker = _answering(start(prefect_worker(pool_of(deployed_name()), _url(server, users))))
        for started in filter(None, (server, worker, page and _answering(page))):
            say(_line(started))
    if users:
        say(f"  Prefect    {NamedServer(users).described()}")
    if page is None:
        say(f"  MLflow     {described_store()}: {page_command()}")
    say(f"Logs: {SERVICES}. Stop with: dfkd down. Deploy the nightly run with: dfkd deploy")


def stop_services(*, yes: bool) -> None:
    """End all services of the project, and what is left of those that crashed.

    Args:
        yes: Whether runs in progress may be ended without a question.

    Raises:
        ConfigError: There are such runs, and nobody can be asked.
        DfkdError: The answer is no.
    """
    with _one_at_a_time():
        if found := ended_runs():
            _ask(found, yes=yes)
        stopped = [name for name in _ORDER_OF_THE_END if _stop(name)]
        leftovers()
    if stopped:
        say(f"Stopped: {', '.join(_TITLES[name] for name in stopped)}. Start again with: dfkd up")
    else:
        say("Nothing runs in the background for this project. Start with: dfkd up")


def _ask(found: Sequence[str], *, yes: bool) -> None:
    runs = f"{'a run' if len(found) == 1 else f'{len(found)} runs'} in progress: {', '.join(found)}"
    if yes:
        say(f"This ends {runs}. Finished shards and checkpoints are kept")
    elif not sys.stdin.isatty():
        raise ConfigError(f"dfkd down would end {runs}. Nothing was stopped. End it nevertheless with: dfkd down --yes")
    elif not agreed(f"This ends {runs}. Finished shards and checkpoints are kept. Stop the services? [y/N] "):
        raise DfkdError("Nothing was stopped. Stop the services when the run has ended with: dfkd down")


def _answering(started: Starting) -> Starting:
    try:
        started.wait()
    except DfkdError as error:
        raise DfkdError(f"{error}\nStop what runs with: dfkd down. Try again with: dfkd up") from None
    return started


def _url(server: Starting | None, users: Address | None) -> str:
    assert server or users
    return server.service.url if server else (users.url if users else "")


def _end_lost_runs(url: str) -> None:
    if not of_ended():
        return
    # Takes seconds, and mostly there are none.
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from dfkd_flows.shown.lost import end_lost_runs

    with temporary_settings({PREFECT_API_URL: url}), naming(f"The Prefect server at {without_secrets(url)} refuses"):
        end_lost_runs()


def _line(started: Starting) -> str:
    kind, service = started.kind, started.service
    shown = _shown(kind, service.url)
    state = f" (runs since {service.started})" if started.process is None else ""
    return f"  {_TITLES[kind.name]:<10} {shown}{state}"


def _shown(kind: Kind, url: str) -> str:
    """Return the address of the pages, or what a worker serves."""
    return without_secrets(kind.serves or url.removesuffix(kind.path))


def _stop(name: str) -> bool:
    """End a service and return whether it ran."""
    service = running(name)
    if service:
        end(service)
        # The port is kept for the next start.
        write_json(note_of(name), asdict(replace(service, pid=0)))
    return service is not None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    SERVICES.mkdir(parents=True, exist_ok=True)
    with FileLock(SERVICES / "lock"):
        yield
