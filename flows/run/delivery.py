"""`dfkd publish`: results that are made already go to MLflow and to the DVC remote; and the services of a run."""

from __future__ import annotations

from collections.abc import Collection

from dfkd_core.errors import DfkdError
from dfkd_flows.run.outcome import Made, made_by
from dfkd_flows.session.display import say
from dfkd_flows.session.server import needing_server, start_server
from dfkd_flows.session.services import check_server, described_server
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.stages.names import addresses, label, up_to_date
from dfkd_tasks.caching.workspace import PROJECT_REPORT
from dfkd_tasks.dvc_project.remote import described_remote
from dfkd_tasks.dvc_project.status import LOCK, changed_stages
from dfkd_tasks.mlflow_store.addresses import described_store

__all__ = ["described_delivery", "publish_results"]


def publish_results() -> None:
    """Publish the current results and copy them to the remote; what is there already stays. Hold the project's lock.

    Raises:
        DfkdError: There are no results, they are not those of params.yaml and the code, or a service cannot be used.
    """
    params = load_params()
    if not LOCK.is_file():
        raise DfkdError("There are no results yet. Make and publish them with: dfkd run")
    changed = changed_stages()
    made_before = up_to_date(params, changed)
    if changed and len(made_before) < len(params.students):
        older = [label(address, params) for address in addresses(params) if address in changed]
        text = f"The results are older than what they depend on: {', '.join(older)}. Make them with: dfkd run"
        if not made_before:
            raise DfkdError(text)
        say(text)
    check_server()
    server = start_server()
    # Imported while the server starts.
    from dfkd_flows.pipeline import publication

    server.wait()
    with needing_server(server):
        made = made_by(lambda: publication(params.only(made_before)))
    say(described_delivery(made, params))
    made.check()


def described_delivery(made: Made, params: Params, *, known: Collection[str] = ()) -> str:
    """Return where the results are now, with the pages of services that show them.

    Args:
        made: Result of the pipeline's flow.
        params: Parameters of the project.
        known: Names of students that were registered before.
    """
    lines = []
    for name, published in made.published.items():
        if name not in known:
            start = f"{name}: " if len(params.students) > 1 else ""
            lines.append(f"{start}Registered {published.model} version {published.version}: {published.reason}")
    if PROJECT_REPORT.is_file():
        lines.append(f"  report     {PROJECT_REPORT}")
    if not made.faults:
        pages = [published.page for published in made.published.values() if published.page]
        lines += [f"  MLflow     {page}" for page in pages or [described_store()]]
        lines += [f"  Prefect    {made.flow_page or described_server()}", f"  DVC        {described_remote()}"]
    return "\n".join(lines)
