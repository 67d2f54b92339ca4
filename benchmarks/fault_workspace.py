"""A small copy of the project in which faults are injected, and what is compared after them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import yaml

from dfkd_flows.session.prefect_settings import API_URL
from dfkd_flows.session.server import OWN_URL, ServerProcess

__all__ = ["Outcome", "Workspace", "ends_alone", "has_next_command", "make_workspace"]

CHECKOUT = Path(__file__).resolve().parent.parent
# Everything for real, but small.
SMALL = {
    "data.dataset": "digits",
    "teacher.epochs": 1,
    "synthesis.num_images": 200,
    "synthesis.images_per_shard": 50,
    "synthesis.methods.soft_target.refinement.iterations": 3,
    "distillation.epochs": 1,
    "evaluation.num_latency_runs": 1,
    "registry.enforce_rules": False,
    "execution.device": "cpu",
}
_COMMAND_SECONDS = 1800
_LAST_LINES = 6
# A command, or another thing to do.
_NEXT = re.compile(
    r"\b(dfkd|dvc|git|pip|make|mlflow|prefect|kill) -{0,2}[a-z]|"
    r"\b(try|continue|free|set|give|choose|use|see|correct|remove|change|wait|copy|request|restore)\b|"
    r"\b(allowed|must be|should be|is one of|did you mean)\b",
    re.IGNORECASE,
)


@dataclass
class Outcome:
    """What a fault led to."""

    name: str
    seconds: float = 0.0
    same: bool = False
    duplicates: int = 0
    orphans: list[str] = field(default_factory=list)
    half_files: list[str] = field(default_factory=list)
    no_next_command: bool = False
    note: str = ""
    """What was seen, for faults that are not as they should be."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or left behind."""
        return self.same and not (self.duplicates or self.orphans or self.half_files or self.no_next_command)

    def faults(self) -> str:
        """Return what was not as it should be."""
        return (
            f"same: {self.same}, duplicates: {self.duplicates}, orphans: {self.orphans}, "
            f"half files: {self.half_files}, no next step: {self.no_next_command}"
        )


@dataclass(frozen=True)
class Workspace:
    """A clone with its DVC remote in one folder, which can be put back to a stored state."""

    root: Path
    environment: dict[str, str]

    @property
    def path(self) -> Path:
        """The project's folder."""
        return self.root / "work" / "project"

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a command of this environment in a session of its own."""
        program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
        defaults: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "start_new_session": True,
        }
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            program, cwd=self.path, env=self.environment, text=True, errors="replace", **{**defaults, **options}
        )
        return process

    def run(self, *command: str, seconds: float = _COMMAND_SECONDS) -> tuple[int, str]:
        """Run a command and return its exit code and its output; -1 if it does not end in time."""
        process = self.start(*command)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return -1, f"no end within {seconds} s: {process.communicate()[0]}"
        return process.returncode, output

    def prepared(self) -> PreparedWorkspace:
        """Return the same workspace, in which commands share a server of Prefect and the slow imports."""
        folder = self.root / "server"
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        server = ServerProcess()
        server.wait()
        return PreparedWorkspace(self.root, {**self.environment, API_URL: server.url, OWN_URL: server.url})

    def store(self, name: str) -> None:
        """Keep the present state under a name."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        _copy(self.root / "work", self.root / name)

    def restore(self, name: str) -> None:
        """Go back to a stored state."""
        shutil.rmtree(self.root / "work", ignore_errors=True)
        _copy(self.root / name, self.root / "work")

    def keep_cache(self) -> None:
        """Go back to the base state, but keep DVC's cache."""
        kept = self.root / "cache"
        shutil.rmtree(kept, ignore_errors=True)
        (self.path / ".dvc/cache").rename(kept)
        self.restore("base")
        shutil.rmtree(self.path / ".dvc/cache")
        kept.rename(self.path / ".dvc/cache")

    def forget_runs(self, stage: str) -> None:
        """Remove a stage from DVC's cache of runs, which names the command of each run."""
        for path in (self.path / ".dvc/cache/runs").glob("*/*/*"):
            if f"dfkd stage {stage}\n" in path.read_text():
                shutil.rmtree(path.parent)

    def digests(self) -> dict[str, str]:
        """Return the digests of manifest and student, and the parameters and outputs in dvc.lock."""
        files = (
            "artifacts/teachers/default/transfer_set/manifest.json",
            "artifacts/students/default/model.safetensors",
        )
        found = {name: _sha256(self.path / name) for name in files}
        stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
        for name, stage in stages.items():
            found[f"{name}.params"] = str(stage.get("params"))
            found |= {out["path"]: out["md5"] for out in stage["outs"] if out["path"] not in _TIMED}
        return found

    def duplicates(self) -> int:
        """Return how many runs and versions MLflow has beyond one per result, and how many runs are not finished."""
        with sqlite3.connect(f"file:{self.path / 'mlflow.db'}?mode=ro", uri=True) as store:
            runs = _surplus(store, "select value from tags where key = 'dfkd.results_sha256'")
            versions = _surplus(store, "select value from model_version_tags where key = 'dfkd.results_sha256'")
            half = store.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0]
        return runs + versions + int(half)

    def half_files(self) -> list[str]:
        """Return files that a killed process left unfinished where users look."""
        folders = (self.path, self.path / "artifacts", self.path / "reports")
        found = [
            item for folder in folders for item in (folder.rglob(".*") if folder != self.path else folder.iterdir())
        ]
        return [item.name for item in found if _TEMPORARY.fullmatch(item.name) and item.is_file()]

    def processes(self) -> list[psutil.Process]:
        """Return the processes that work in the folder."""
        return [process for process in psutil.process_iter() if _works_in(process, self.path)]


@dataclass(frozen=True)
class PreparedWorkspace(Workspace):
    """A workspace whose `dfkd` runs in children of one process, which lives as long as this one."""

    def run(self, *command: str, seconds: float = _COMMAND_SECONDS) -> tuple[int, str]:
        """Run `dfkd` and return its exit code and its output; -1 if it does not end in time."""
        assert command[0] == "dfkd"
        output = self.root / "output.txt"
        requests, codes = self._forking.stdin, self._forking.stdout
        assert requests
        assert codes
        requests.write(json.dumps([command[1:], str(output)]) + "\n")
        requests.flush()
        if not select.select([codes], [], [], seconds)[0]:
            ends_alone(self)
        return int(codes.readline()), output.read_text(errors="replace")

    @cached_property
    def _forking(self) -> subprocess.Popen[str]:
        return self.start("python", str(Path(__file__).with_name("fault_fork.py")), str(self.path),
                          stdin=subprocess.PIPE, stderr=None)  # fmt: skip


# Measured times differ from run to run.
_TIMED = ("metrics/default.json",)
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


def make_workspace(root: Path) -> Workspace:
    """Copy the files of this checkout into `root`, commit them, and run everything once; use an earlier one again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DVC_SITE_CACHE_DIR": str(root / "work" / "site")}
    environment["PYTHONPATH"] = str(root / "work" / "project" / "src")
    # Compiled once for all faults.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    workspace = Workspace(root=root, environment=environment)
    if not (root / "base").is_dir():
        shutil.rmtree(root, ignore_errors=True)
        _copy_checkout(workspace.path)
        changes = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
        code, output = workspace.run("dfkd", "run", *changes)
        if code:
            sys.exit(output)
        workspace.store("base")
    return workspace


def _copy_checkout(project: Path) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(listed, cwd=CHECKOUT, text=True).split("\0")):
        if (CHECKOUT / name).exists() and name != "dvc.lock":
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            # The packages' names in src/ are links to folders.
            shutil.copy2(CHECKOUT / name, project / name, follow_symlinks=False)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *arguments], cwd=project, check=True)


def ends_alone(workspace: Workspace, seconds: float = 5.0) -> list[str]:
    """Return the processes that still work in the folder after so many seconds, and end them."""
    deadline = time.monotonic() + seconds
    while (left := workspace.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    texts = []
    for process in left:
        try:
            texts.append(" ".join(process.cmdline()[:6]))
            process.kill()
        except psutil.Error:
            continue
    return texts


def has_next_command(output: str) -> bool:
    """Return whether the last lines of an output name something to do next, and none shows a fault of the program."""
    last = "\n".join(output.strip().splitlines()[-_LAST_LINES:])
    return not any(word in output for word in ("Traceback", "bug in dfkd")) and bool(_NEXT.search(last))


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _surplus(store: sqlite3.Connection, query: str) -> int:
    values = [value for (value,) in store.execute(query)]
    return len(values) - len(set(values))


def _works_in(process: psutil.Process, path: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(path) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
