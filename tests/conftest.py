"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_flows.session.environment import TELEMETRY_OFF, prepare_environment

ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS = 550
SECONDS_TO_SERVE = 240

# Everything for real, but small: bundled digits, four shards for two workers.
SMALL = {
    "data.dataset": "digits",
    "teacher.epochs": 2,
    "synthesis.num_images": 400,
    "synthesis.images_per_shard": 100,
    "synthesis.methods.soft_target.refinement.iterations": 5,
    "distillation.epochs": 2,
    "evaluation.num_latency_runs": 3,
    "registry.enforce_rules": False,
    "execution.device": "cpu",
}


# Tests use no services of the person who runs them.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)
os.environ["PREFECT_PROFILES_PATH"] = os.devnull
_BEFORE = dict(os.environ)
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Here and not in a hook, as conftest.py files further down import torch, which reads this once. Threads that wait by
# spinning make tests several times slower where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if _IS_WORKER:
    # There are as many workers as cores: more threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the state of Prefect out of the home folder, and turn telemetry off, before Prefect is imported."""
    if config.getoption("dist", "no") != "no" and not _IS_WORKER:
        # Runs no test; its workers start with its environment, which must stay as the user has it.
        os.environ.clear()
        os.environ.update(_BEFORE)
        return
    state = Path(os.environ.get("DFKD_TEST_STATE", ROOT / ".dfkd" / "tests"), os.environ.get("PYTEST_XDIST_WORKER", ""))
    state.mkdir(parents=True, exist_ok=True)
    prepare_environment(state)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.name)


@dataclass(frozen=True)
class Workspace:
    """A copy of the repository, used through its commands as a user would."""

    path: Path
    environment: dict[str, str]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command of this environment in the workspace."""
        program = str(Path(sys.executable).parent / command[0])
        return subprocess.Popen(
            [program, *command[1:]],
            cwd=self.path,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group of its own, so that whatever hangs can be ended as a whole.
            start_new_session=True,
        )

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command, check its exit code and return what it printed."""
        process = self.start(*command, **environment)
        try:
            output, _ = process.communicate(timeout=COMMAND_SECONDS)
        finally:
            process.kill()
        assert process.returncode == code, output
        return output

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads((self.path / name).read_text())

    def read_lock(self) -> dict[str, Any]:
        """Return the stages in dvc.lock."""
        return dict(yaml.safe_load((self.path / "dvc.lock").read_text())["stages"])


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """Return a function that copies the repository's files to a new folder, as a clone would have them."""

    def make(name: str) -> Workspace:
        path = tmp_path_factory.mktemp(name)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for relative in filter(None, listed.split("\0")):
            source = ROOT / relative
            # A lock file of earlier results is not part of what is tested.
            if source.exists() and relative != "dvc.lock":
                (path / relative).parent.mkdir(parents=True, exist_ok=True)
                # The packages' names in src/ are links to folders.
                shutil.copy2(source, path / relative, follow_symlinks=False)
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "start"]):
            subprocess.run(["git", *arguments], cwd=path, check=True)
        environment = _BEFORE | {"PYTHONPATH": str(path / "src")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        return Workspace(path=path, environment=environment)

    return make


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Undo what a command changes in the environment of this process, for example with `--debug`."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def make_project() -> Callable[[Path], Path]:
    """Return a function that fills a folder with dvc.yaml, params.yaml and the presets."""

    def make(folder: Path) -> Path:
        for name in ("dvc.yaml", "params.yaml"):
            shutil.copy2(ROOT / name, folder / name)
        shutil.copytree(ROOT / "presets", folder / "presets")
        return folder

    return make


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_project: Callable[[Path], Path]) -> Path:
    """Change into a folder with dvc.yaml, params.yaml and the presets, and nothing else."""
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Overrides that make a run take seconds."""
    return dict(SMALL)


@pytest.fixture
def closed_port() -> int:
    """Return a port of 127.0.0.1 at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def answering() -> Iterator[Callable[[Mapping[str, tuple[int, Any]]], str]]:
    """Return a function that starts a server with a status and content by the end of a path, and 404 for all else."""
    servers = []

    def start(answers: Mapping[str, tuple[int, Any]]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                status, content = next((found for end, found in answers.items() if path.endswith(end)), (404, {}))
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class Service:
    """A real server of another program, on a port of 127.0.0.1 that it keeps."""

    command: list[str]
    """Its program and arguments; `{port}` is replaced."""
    page: str
    """A page that it answers when it is up."""
    folder: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = [str(Path(sys.executable).parent / self.command[0]), *self.command[1:]]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [part.format(port=self.port) for part in program],
                cwd=self.folder,
                env={**_BEFORE, **TELEMETRY_OFF, "PREFECT_HOME": str(self.folder), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS_TO_SERVE
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.page, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """End it with all processes that it started."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a service: `serve("mlflow", "server", "--port", "{port}", page="/health")`."""
    services = []

    def start(*command: str, page: str, **environment: str) -> Service:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        service = Service(list(command), page, tmp_path_factory.mktemp("service"), port, environment)
        services.append(service)
        service.start()
        return service

    yield start
    for service in services:
        service.stop()


@pytest.fixture(scope="session")
def mlflow_server(serve: Callable[..., Service]) -> Service:
    """Return a real MLflow server with a database and a store for files of its own."""
    store = ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "./files"]
    address = ["--host", "127.0.0.1", "--port", "{port}", "--workers", "1"]
    return serve("mlflow", "server", *store, *address, page="/health", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of MLflow without experiments of ours; to make one takes seconds."""
    import mlflow

    from dfkd_tasks.mlflow_store.publishing import open_store

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store("other")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """Change into a folder with a store of MLflow."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    yield Path(shutil.copy2(empty_store, "mlflow.db"))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it
