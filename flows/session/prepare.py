"""Create the project's own databases of Prefect and MLflow, which saves the first run some seconds."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from dfkd_flows.session.environment import enter_project, prepare_environment
from dfkd_flows.session.server import named_server
from dfkd_flows.settings.parsing import load_params
from dfkd_tasks.mlflow_store.addresses import is_own_store

__all__ = ["main"]


def main() -> None:
    """Prepare the project of the current folder."""
    prepare_environment(enter_project())
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    # Each takes about ten seconds of one core.
    with ThreadPoolExecutor() as pool:
        prefect = pool.submit(_run, command) if named_server() is None else None
        if is_own_store():
            from dfkd_tasks.mlflow_store.publishing import open_store

            open_store(load_params().registry.experiment)
    if prefect:
        prefect.result()


def _run(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
