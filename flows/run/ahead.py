"""What `dfkd run` can begin before its own slow imports: seeing what has changed, and the server if something has."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from flows.session.server import ServerProcess, start_server
from tasks.dvc_project.status import changed_stages

__all__ = ["Outlook", "look_ahead"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What there is to do."""

    changed: list[str]
    """Stages whose inputs or outputs have changed."""
    server: ServerProcess | None
    """The server that was started for them; None if nothing has changed or PREFECT_API_URL names one."""


def look_ahead() -> Future[Outlook]:
    """Begin to look, beside what the caller does next; Prefect must not be imported before the result is there."""
    with_one_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="look ahead")
    outlook = with_one_thread.submit(_look)
    with_one_thread.shutdown(wait=False)
    return outlook


def _look() -> Outlook:
    changed = changed_stages()
    return Outlook(changed=changed, server=start_server() if changed else None)
