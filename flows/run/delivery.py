"""`dfkd publish`: results that are made already go to MLflow and to the DVC remote; and the services of a run."""

from __future__ import annotations

from collections.abc import Mapping

from dfkd_core.errors import DfkdError
from dfkd_flows.session.display import say
from dfkd_flows.session.server import needing_server, start_server
from dfkd_flows.session.services import check_server, described_server
from dfkd_flows.settings.parsing import load_params
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
    if changed := changed_stages():
        raise DfkdError(
            f"The results are older than what they depend on: {', '.join(changed)}. Make them with: dfkd run"
        )
    check_server()
    server = start_server()
    # Imported while the server starts.
    from dfkd_flows.pipeline import publication

    server.wait()
    with needing_server(server):
        made = publication(params)
    say(described_delivery(made))


def described_delivery(made: Mapping[str, str]) -> str:
    """Return where the results are now, with the pages of services that show them.

    Args:
        made: Result of the pipeline's flow.
    """
    return "\n".join(
        (
            f"Registered {made['model']} version {made['version']}: {made['reason']}",
            f"  MLflow     {made['page'] or described_store()}",
            f"  Prefect    {made['flow_page'] or described_server()}",
            f"  DVC        {described_remote()}",
        )
    )
