"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_flows.session.environment import prepare_environment

ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS = 550

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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of MLflow without experiments of ours; to make one takes seconds."""
    import mlflow

    from dfkd_tasks.mlflow_store.publishing import open_store

    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store("other")
    mlflow.set_tracking_uri(before)
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """Change into a folder with a store of MLflow."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    yield Path(shutil.copy2(empty_store, "mlflow.db"))
    mlflow.set_tracking_uri(before)
