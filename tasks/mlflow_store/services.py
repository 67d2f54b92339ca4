"""Whether an MLflow of the user's own can take a run: a server, a database, a registry. Imports MLflow."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dfkd_core.errors import DfkdError
from dfkd_tasks.mlflow_store.addresses import REGISTRY, TRACKING, is_server, new_artifacts
from dfkd_tasks.records.foreign import is_foreign, reason, without_secrets

__all__ = ["check_registry", "check_tracking"]

_SECONDS_TO_ANSWER = 5
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Few: the check must answer in seconds.
_HASTE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# MLflow's own switch.
_FOLDERS = "MLFLOW_ALLOW_FILE_STORE"
_PROBE = "dfkd-probe"
_PROBE_TAG = "dfkd.checked"
# Status codes, and not parts of a port or of an id.
_REFUSED = re.compile(r"(?<![:\w])40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|Unauthorized|Forbidden")
# Names of MLflow's for a service, which are no folders.
_SERVICES = ("databricks", "uc")


def check_tracking(uri: str, experiment: str) -> None:
    """Check that runs can be logged at an address, which gets the experiment if it has none of this name.

    Raises:
        DfkdError: It does not answer, is of another major version, refuses the user, or takes no files.
    """
    _check_answer(uri, TRACKING)
    import mlflow
    from mlflow.exceptions import MlflowException

    with _hasty(), _explained(uri, TRACKING):
        client = mlflow.MlflowClient(uri, uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            try:
                client.create_experiment(experiment, artifact_location=new_artifacts(experiment))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(experiment)
        assert found is not None
        # Who may read need not be allowed to write.
        if found.lifecycle_stage == "active":
            client.set_experiment_tag(found.experiment_id, _PROBE_TAG, "true")
    with _hasty():
        _check_files(str(found.artifact_location), uri)


def check_registry(uri: str) -> None:
    """Check that models can be registered at an address.

    Raises:
        DfkdError: It does not answer, is of another major version, has no registry, or refuses the user.
    """
    _check_answer(uri, REGISTRY)
    import mlflow

    with _hasty(), _explained(uri, REGISTRY):
        mlflow.MlflowClient(uri, uri).search_registered_models(max_results=1)


def _check_answer(uri: str, name: str) -> None:
    """Check within seconds that somebody listens at an address, and that a server is an MLflow of our version."""
    address = urlsplit(uri)
    is_folder = address.scheme in ("", "file") and not uri.startswith(_SERVICES)
    if is_folder and os.environ.get(_FOLDERS, "").lower() not in ("true", "1"):
        raise DfkdError(
            f"{name}={uri} is a folder, which MLflow no longer writes into. Name a file in it: "
            f"export {name}=sqlite:///{unquote(address.path).rstrip('/')}/mlflow.db"
        )
    try:
        port = address.port or _PORTS.get(address.scheme.partition("+")[0])
        if address.hostname and port and not _has_proxy(address.scheme, address.hostname):
            socket.create_connection((address.hostname, port), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise DfkdError(f"No MLflow answers at {_shown(uri, name)}: {reason(error)}. {_remedy(name)}") from None
    if is_server(uri):
        _check_version(uri, name)


def _has_proxy(scheme: str, host: str) -> bool:
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


def _check_version(uri: str, name: str) -> None:
    try:
        # Needs no password, and urllib takes none in an address.
        page = f"{without_secrets(uri).rstrip('/')}/version"
        with urllib.request.urlopen(page, timeout=_SECONDS_TO_ANSWER) as response:
            found = response.read(100).decode(errors="replace").strip().strip('"')
    except (OSError, ValueError):
        # A proxy in front of the server may refuse this page; the client's own calls decide.
        return
    own = version("mlflow")
    if re.match(r"\d+\.\d+", found) and found.partition(".")[0] != own.partition(".")[0]:
        raise DfkdError(
            f"The MLflow at {_shown(uri, name)} has version {found}, and this one is {own}. Use a server of the same "
            f"major version. {_remedy(name)}"
        )


@contextmanager
def _hasty() -> Iterator[None]:
    """Let MLflow give up within seconds in the block."""
    before = {name: os.environ.get(name) for name in _HASTE}
    os.environ.update(_HASTE)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _explained(uri: str, name: str) -> Iterator[None]:
    """Turn what a service reports in the block into a sentence."""
    try:
        yield
    except Exception as error:
        if not is_foreign(error):
            raise
        raise DfkdError(_sentence(error, uri, name)) from error


def _sentence(error: Exception, uri: str, name: str) -> str:
    if _REFUSED.search(str(error)):
        return (
            f"MLflow refuses to be written at {_shown(uri, name)}: {reason(error)}. Set the rights of the user "
            "there, or another one: export MLFLOW_TRACKING_USERNAME=NAME MLFLOW_TRACKING_PASSWORD=PASSWORD"
        )
    remedy = f"Install {error.name}" if isinstance(error, ModuleNotFoundError) else _remedy(name)
    return f"MLflow at {_shown(uri, name)} cannot be used: {reason(error)}. {remedy}"


def _check_files(location: str, uri: str) -> None:
    """Write a file where an experiment keeps those of its runs, and delete it."""
    import mlflow.store.artifact.artifact_repository_registry as repositories

    try:
        files: Any = repositories.get_artifact_repository(location, tracking_uri=uri)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, _PROBE)
            path.write_bytes(b"")
            files.log_artifact(str(path))
    except Exception as error:
        raise DfkdError(
            f"MLflow's files cannot be written into {without_secrets(location)}: {reason(error)}. Correct the rights "
            "or the credentials of this place, or start the server with --artifacts-destination"
        ) from error
    with suppress(Exception):
        # Who may write need not be allowed to delete: then an empty file stays.
        files.delete_artifacts(_PROBE)


def _shown(uri: str, name: str) -> str:
    return f"{name}={without_secrets(uri)}"


def _remedy(name: str) -> str:
    return f"Start it, or use the store in the project: unset {name}"
