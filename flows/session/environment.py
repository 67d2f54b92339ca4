"""The environment of Prefect, DVC and MLflow: no telemetry, all state inside the project."""

from __future__ import annotations

import os
from pathlib import Path

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.session.prefect_settings import keep_profiles
from dfkd_tasks.mlflow_store.moved import follow_move

__all__ = [
    "DEBUG",
    "TELEMETRY_OFF",
    "check_writable",
    "enter_project",
    "find_project",
    "prepare_environment",
]

DEBUG = "DFKD_DEBUG"
"""Environment variable that passes `--debug` to the stages."""

# MLflow expects DO_NOT_TRACK=true and Prefect DO_NOT_TRACK=1, so MLflow has its own variable.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Environment variables that turn off the telemetry of DVC, MLflow and Prefect."""

_SETTINGS = {
    **TELEMETRY_OFF,
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # With passwords in its address.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Half a minute, not four: the results stay, and `dfkd publish` repeats the step.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    # Nothing is ever unpickled.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # The command line reports a failure once; no traceback is logged.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # Threads that spin while they wait slow everything down several times on shared cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_PATHS = {
    "PREFECT_HOME": ".dfkd/prefect",
    "PREFECT_LOCAL_STORAGE_PATH": ".dfkd/results",
    "MPLCONFIGDIR": ".dfkd/matplotlib",
}


def find_project(here: Path) -> Path | None:
    """Return the nearest folder, `here` or above, that holds dvc.yaml and params.yaml; None if there is none."""
    holds = (folder for folder in (here, *here.parents) if _is_project(folder))
    return next(holds, None)


def _is_project(folder: Path) -> bool:
    return (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file()


def enter_project() -> Path:
    """Change to the nearest folder, here or above, that holds dvc.yaml and params.yaml, and return it.

    Raises:
        ConfigError: There is no such folder.
    """
    here = Path.cwd()
    folder = find_project(here)
    if folder is None:
        raise ConfigError(
            _incomplete(here) or f"No dvc.yaml and params.yaml in {here} or above it. Change to the project's folder."
        )
    os.chdir(folder)
    return folder


def _incomplete(here: Path) -> str:
    """Return what the nearest folder of DVC lacks, empty if there is no such folder."""
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir():
            lacking = [name for name in ("dvc.yaml", "params.yaml") if not (folder / name).is_file()]
            restore = f"git -C {folder} checkout {' '.join(lacking)}"
            return f"{folder} has no file {' and '.join(lacking)}. Restore it with: {restore}"
    return ""


def prepare_environment(project: Path, *, debug: bool = False) -> None:
    """Set the variables that are not set yet, and let the project's MLflow store follow a folder that was moved.

    Call it before prefect or mlflow is imported.

    Args:
        project: Folder that holds the state.
        debug: Whether Prefect logs tracebacks, in this process and those that it starts.
    """
    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
        os.environ[DEBUG] = "1"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    (project / ".dfkd").mkdir(exist_ok=True)
    keep_profiles()
    for name, path in _PATHS.items():
        os.environ.setdefault(name, str(project / path))
    follow_move(project)


def check_writable(folder: Path = Path(".")) -> None:
    """Check that results can be written.

    Raises:
        DfkdError: The folder is read-only or the disk is full.
    """
    probe = folder / ".dfkd" / "probe"
    try:
        probe.parent.mkdir(exist_ok=True)
        probe.write_bytes(bytes(4096))
        # Another command may probe at the same time.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise DfkdError(
            f"Cannot write to {folder.resolve()}: {error.strerror}. Free space, see: df -h {folder.resolve()}"
        ) from None
