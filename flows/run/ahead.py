"""Work that `dfkd run` starts before its slow imports: it finds the changed stages and starts the server for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dfkd_core.errors import DfkdError
from dfkd_flows.session.server import Server, start_server
from dfkd_flows.session.starter import prepare_starter
from dfkd_tasks.dvc_project.files import file_faults
from dfkd_tasks.dvc_project.status import changed_stages

__all__ = ["Outlook", "look_ahead"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """The work of a run."""

    changed: list[str]
    """Stages whose inputs or outputs have changed."""
    server: Server | None
    """The server that they use; None if nothing has changed."""


def look_ahead() -> Future[Outlook]:
    """Start in a thread. Prefect must not be imported before the result is available."""
    with_one_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="look ahead")
    outlook = with_one_thread.submit(_look)
    with_one_thread.shutdown(wait=False)
    return outlook


def _look() -> Outlook:
    # DVC's own reports of a fault lack the way out, and it takes a file that was cut off after a stage for whole.
    if faults := list(file_faults()):
        raise DfkdError("\n".join(faults))
    changed = changed_stages()
    server = start_server() if changed else None
    if changed:
        prepare_starter()
    return Outlook(changed=changed, server=server)
