"""The environment of Prefect, DVC and MLflow: no telemetry, all state inside the project."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.session.prefect_settings import keep_profiles, use_background_server
from dfkd_tasks.mlflow_store.moved import follow_move

__all__ = [
    "DEBUG",
    "TELEMETRY_OFF",
    "activation",
    "check_writable",
    "enter_project",
    "find_project",
    "incomplete_project",
    "is_foreign_pipeline",
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
_FILES = ("dvc.yaml", "params.yaml")
_EXPLAINED = (
    "a folder with dvc.yaml and params.yaml that `dfkd init` makes. Make one here with: dfkd init. Without a project "
    "you can use: dfkd inspect --teacher SOURCE, dfkd layers --teacher SOURCE, dfkd doctor, dfkd export --student "
    "FOLDER, dfkd verify FOLDER"
)
_PATHS = {
    "PREFECT_HOME": ".dfkd/prefect",
    "PREFECT_LOCAL_STORAGE_PATH": ".dfkd/results",
    "MPLCONFIGDIR": ".dfkd/matplotlib",
}


def find_project(here: Path) -> Path | None:
    """Return the nearest folder, `here` or above, with dvc.yaml and params.yaml of dfkd; None if there is none."""
    holds = (folder for folder in (here, *here.parents) if _is_project(folder))
    return next(holds, None)


def _is_project(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES) and not is_foreign_pipeline(folder)


def is_foreign_pipeline(folder: Path) -> bool:
    """Return whether the stages in a folder's dvc.yaml are none of dfkd. Those of a damaged file count as its own."""
    try:
        text = (folder / "dvc.yaml").read_bytes()
    except OSError:
        return False
    return b"stages:" in text and b"dfkd" not in text


def enter_project() -> Path:
    """Change to the nearest folder, here or above, that holds dvc.yaml and params.yaml of dfkd, and return it.

    Raises:
        ConfigError: There is no such folder.
    """
    here = Path.cwd()
    folder = find_project(here)
    if folder is None:
        raise ConfigError(incomplete_project(here) or f"{here} is in no project, {_EXPLAINED}")
    os.chdir(folder)
    return folder


def incomplete_project(here: Path) -> str:
    """Return what the nearest project lacks and how to restore it; empty if it is whole, or there is none."""
    for folder in (here, *here.parents):
        found = any((folder / name).exists() for name in (*_FILES, ".dfkd"))
        if found and (folder / ".dvc").is_dir() and not is_foreign_pipeline(folder):
            lacking = [name for name in _FILES if not (folder / name).is_file()]
            restore = f"git -C {folder} checkout {' '.join(lacking)}"
            return f"{folder} has no file {' and '.join(lacking)}. Restore it with: {restore} (or: dfkd init {folder})"
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
    _offer_command()
    (project / ".dfkd").mkdir(exist_ok=True)
    keep_profiles()
    for name, path in _PATHS.items():
        os.environ.setdefault(name, str(project / path))
    use_background_server()
    follow_move(project)


def _offer_command() -> None:
    """Let the stages that DVC starts find the `dfkd` of this installation, wherever it is, before any other."""
    scripts, path = Path(sys.executable).parent, os.environ.get("PATH", os.defpath)
    if (scripts / "dfkd").is_file() and path.split(os.pathsep)[0] != str(scripts):
        os.environ["PATH"] = os.pathsep.join((str(scripts), path))


def activation() -> str:
    """Return the command that lets a shell find this installation's commands; empty if it does or needs none."""
    script = Path(sys.prefix, "bin", "activate")
    if os.environ.get("VIRTUAL_ENV") == sys.prefix or not script.is_file():
        return ""
    return f". {quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))}"


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
