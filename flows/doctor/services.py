"""Git, DVC, MLflow and Prefect as the project uses them; nothing is started, fetched or changed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from flows.doctor.findings import Finding, fault, note, ok
from flows.session.environment import TELEMETRY_OFF
from flows.session.server import API_URL, answers
from tasks.caching.code import ENTRY_MODULES
from tasks.dvc_project.status import LOCK, dvc_command, git_commit, last_error

__all__ = ["look_at_dvc", "look_at_git", "look_at_mlflow", "look_at_prefect", "look_at_telemetry", "without_secrets"]

_TRACKING_URI = "MLFLOW_TRACKING_URI"
_SECONDS = 20
_NO_STAGE = ("tune",)
# Remotes of DVC that come with a package of their own.
_PLUGINS = ("azure", "gdrive", "gs", "hdfs", "oss", "s3", "ssh", "webdav", "webhdfs")


def look_at_git() -> Iterator[Finding]:
    """Yield whether there is a commit for results to refer to."""
    try:
        inside = _run("git", "rev-parse", "--git-dir")
    except FileNotFoundError:
        yield fault("git", "git is not installed, and DVC needs it", "install git")
        return
    if inside.returncode:
        said = inside.stderr.strip().splitlines()[0]
        here = Path.cwd()
        is_there = any((folder / ".git").exists() for folder in (here, *here.parents))
        yield fault("git", said, "git status" if is_there else "git init && git add --all && git commit -m start")
        return
    commit = git_commit()
    if commit == "unknown":
        yield fault("git", "the repository has no commit", "git add --all && git commit -m start")
    else:
        changed = ", and files that differ from it" if commit.endswith("-dirty") else ""
        yield ok("git", f"commit {commit[:10]}{changed}")


def look_at_dvc() -> Iterator[Finding]:
    """Yield whether dvc.yaml has all stages and whether there is a remote to keep results in."""
    listed = _run(*dvc_command("stage", "list", "--name-only"))
    said = last_error(listed.stderr)
    if "not inside of a DVC repository" in said:
        yield fault("dvc", "the project is not DVC's: .dvc is missing", "git checkout .dvc (or: dvc init)")
        return
    missing = [name for name in ENTRY_MODULES if name not in (*_NO_STAGE, *listed.stdout.split())]
    if listed.returncode:
        yield fault("dvc", said, "git diff dvc.yaml .dvc/config")
    elif missing:
        yield fault("dvc", f"dvc.yaml has no stage {', '.join(missing)}", "git diff dvc.yaml")
    configured = _run(*dvc_command("config", "--list"))
    if configured.returncode == 0:
        # The levels follow each other, and the last one counts.
        yield _default_remote(dict(line.split("=", 1) for line in configured.stdout.splitlines() if "=" in line))


def _default_remote(config: Mapping[str, str]) -> Finding:
    name = config.get("core.remote")
    if not name:
        known = [key.split(".")[1] for key in config if key.startswith("remote.") and key.endswith(".url")]
        command = f"dvc remote default {known[0]}" if known else "dvc remote add --default local .dvc-store"
        return fault("dvc", "there is no default remote to keep results in", command)
    url = config.get(f"remote.{name}.url")
    if not url:
        return fault("dvc", f"the default remote {name} has no url", f"dvc remote add --default {name} .dvc-store")
    return _remote(name, url)


def _remote(name: str, url: str) -> Finding:
    scheme = urlsplit(url).scheme
    # A single letter is a drive of Windows.
    if len(scheme) < 2:
        return _folder_remote(name, Path(url))
    if scheme in _PLUGINS and not _is_installed(f"dvc-{scheme}"):
        text = f"remote {name}, {without_secrets(url)}, needs dvc-{scheme}, which is not installed"
        return fault("dvc", text, f"pip install 'dvc[{scheme}]'")
    return ok("dvc", f"remote {name}: {without_secrets(url)} (not contacted)")


def _is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _folder_remote(name: str, folder: Path) -> Finding:
    move = f"dvc remote modify {name} url FOLDER"
    if folder.exists():
        if folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return ok("dvc", f"remote {name}: {folder}")
        return fault("dvc", f"remote {name}: {folder} cannot be written to, or is no folder", move)
    if not folder.is_relative_to(Path.cwd()):
        return fault("dvc", f"remote {name}: no folder {folder}", f"mkdir -p {folder} (or mount its disk, or: {move})")
    if LOCK.is_file():
        return note("dvc", f"remote {name}: no folder {folder}, so that nothing is kept", "dvc push")
    return ok("dvc", f"remote {name}: {folder}, made by the first run")


def look_at_prefect() -> Iterator[Finding]:
    """Yield which Prefect server a run takes."""
    url = os.environ.get(API_URL)
    if not url:
        yield ok("prefect", "a server is started for each run")
    elif answers(url):
        yield ok("prefect", f"{without_secrets(url)} answers")
    else:
        text = f"no server answers at {API_URL}={without_secrets(url)}"
        yield fault("prefect", text, f"prefect server start (or: unset {API_URL}, and each run starts its own)")


def look_at_mlflow() -> Iterator[Finding]:
    """Yield whether results can be logged and whether the tracking server, if one is named, answers."""
    # Imported here, as it imports torch.
    from tasks.caching.workspace import STORE

    yield _store(STORE)
    uri = os.environ.get(_TRACKING_URI)
    if not uri:
        return
    shown = f"{_TRACKING_URI}={without_secrets(uri)}"
    if not uri.startswith(("http://", "https://")):
        yield ok("mlflow", f"{shown}: teachers named models:/ or runs:/ are read from it")
    elif answers(uri):
        yield ok("mlflow", f"{shown} answers: teachers named models:/ or runs:/ are read from it")
    else:
        text = f"no server answers at {shown}, from which teachers named models:/ or runs:/ are read"
        yield note("mlflow", text, f"start it (or: unset {_TRACKING_URI}, and they are read from {STORE})")


def _store(path: Path) -> Finding:
    if not path.exists():
        return ok("mlflow", f"{path}, made by the first run")
    try:
        # Read-only: SQLite would otherwise recover an interrupted write.
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)
        try:
            runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        return fault("mlflow", f"{path} cannot be read as MLflow's store: {error}", f"mv {path} {path}.broken")
    if not os.access(path, os.W_OK):
        return fault("mlflow", f"{path} cannot be written to", f"chmod u+w {path}")
    return ok("mlflow", f"{path}, {runs} run{'' if runs == 1 else 's'}")


def look_at_telemetry() -> Iterator[Finding]:
    """Yield whether DVC, MLflow and Prefect were told to send nothing home; dfkd itself never does."""
    other = [
        f"{name}={os.environ.get(name, '')}"
        for name, value in TELEMETRY_OFF.items()
        if os.environ.get(name, "").lower() != value
    ]
    if other:
        names = " ".join(text.partition("=")[0] for text in other)
        yield note("telemetry", f"may be on, as the environment has {', '.join(other)}", f"unset {names}")
    else:
        yield ok("telemetry", "off")


def without_secrets(url: str) -> str:
    """Return a URL without the user and the password that may be in it."""
    host = urlsplit(url).netloc
    return url.replace(host, host.rpartition("@")[2], 1) if "@" in host else url


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=_SECONDS
    )
