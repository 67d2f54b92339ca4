"""The environment that Prefect, DVC and MLflow are started with: no telemetry, all state inside the project."""

from __future__ import annotations

import os
from pathlib import Path

from dfkd_core.errors import ConfigError, DfkdError

__all__ = ["DEBUG", "TELEMETRY_OFF", "check_writable", "enter_project", "prepare_environment"]

DEBUG = "DFKD_DEBUG"
"""Environment variable that hands `--debug` down to the stages."""

# MLflow wants DO_NOT_TRACK to be the word true and Prefect the number 1, so MLflow has its own switch.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Environment variables with which DVC, MLflow and Prefect send nothing home."""

_SETTINGS = {
    **TELEMETRY_OFF,
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Nothing is ever unpickled.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A failure is told once, by the command line, and not also as a logged traceback.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # Threads that wait by spinning make everything several times slower where cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_PATHS = {
    "PREFECT_HOME": ".dfkd/prefect",
    "PREFECT_LOCAL_STORAGE_PATH": ".dfkd/results",
    "MPLCONFIGDIR": ".dfkd/matplotlib",
}


def enter_project() -> Path:
    """Make the nearest folder upwards that holds dvc.yaml and params.yaml the current one and return it.

    Raises:
        ConfigError: There is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            os.chdir(folder)
            return folder
    raise ConfigError(f"No dvc.yaml and params.yaml in {here} or above it. Change to the project's folder.")


def prepare_environment(project: Path, *, debug: bool = False) -> None:
    """Set what is not set yet; has to run before prefect or mlflow are imported.

    Args:
        project: Folder that holds the state.
        debug: Let Prefect log tracebacks, also in the processes that this one starts.
    """
    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
        os.environ[DEBUG] = "1"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    (project / ".dfkd").mkdir(exist_ok=True)
    for name, path in _PATHS.items():
        os.environ.setdefault(name, str(project / path))


def check_writable(folder: Path = Path(".")) -> None:
    """Find out before hours of work whether results can be written.

    Raises:
        DfkdError: The folder is read-only or the disk is full.
    """
    probe = folder / ".dfkd" / "probe"
    try:
        probe.parent.mkdir(exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        raise DfkdError(
            f"Cannot write to {folder.resolve()}: {error.strerror}. Free space or change its rights"
        ) from None
