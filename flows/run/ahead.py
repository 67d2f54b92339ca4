"""Work that `dfkd run` does before its slow imports: fetch results into a new clone, then find the changed stages.

The server for them starts meanwhile.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dfkd_core.errors import DfkdError
from dfkd_flows.session.display import say
from dfkd_flows.session.server import Server, start_server
from dfkd_flows.session.starter import prepare_starter
from dfkd_tasks.dvc_project.files import default_remote, file_faults, is_in_project
from dfkd_tasks.dvc_project.remote import check_remote, described_remote, is_new_clone
from dfkd_tasks.dvc_project.status import changed_stages, run_dvc

__all__ = ["Outlook", "fetch_into_clone", "look_ahead"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """The work of a run."""

    changed: list[str]
    """Stages whose inputs or outputs have changed."""
    server: Server | None
    """The server that they use; None if nothing has changed."""


def fetch_into_clone() -> None:
    """In a new clone, fetch the results in dvc.lock from the remote, so that a run need not make them again.

    Raises:
        DfkdError: The remote cannot be used.
    """
    if not is_new_clone() or is_in_project(default_remote()[1]):
        return
    say(f"Fetching the results from {described_remote()} ...")
    check_remote()
    run_dvc("pull")


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
