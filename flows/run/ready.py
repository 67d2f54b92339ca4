"""The check before a run: trouble that would stop it after hours is reported in its first second."""

from __future__ import annotations

from dfkd_core.errors import DfkdError
from dfkd_flows.session.environment import check_writable
from dfkd_flows.session.services import check_server
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.readiness import project_faults

__all__ = ["check_ready"]


def check_ready(params: Params) -> None:
    """Check that the project and its services can take a run with these parameters.

    Raises:
        DfkdError: The project, the disk, DVC, MLflow or Prefect has a fault; the message lists all faults.
    """
    check_writable()
    faults = [fault for _, fault in project_faults(params)]
    try:
        check_server()
    except DfkdError as error:
        faults.append(str(error))
    if faults:
        raise DfkdError("\n".join(faults))
