"""Full disks, folders without rights, missing remotes and other commands beside a run."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
from fault_kills import CHANGES, prepared
from fault_workspace import Outcome, Workspace, ends_alone, has_next_command

__all__ = ["place_trials"]

_STAGE = "distill"
_RUN = ("dfkd", "run", "--set", CHANGES[_STAGE])
_SECONDS_TO_WORK = 60.0


def place_trials(workspace: Workspace, match: str = "", number: int | None = None) -> Iterator[Outcome]:
    """Yield the outcomes of the faults whose names contain `match`, at most `number` of them."""
    chosen = [(name, trial) for name, trial in _TRIALS.items() if match in name][:number]
    if not chosen:
        return
    expected = prepared(workspace, _STAGE)
    for name, trial in chosen:
        start = time.monotonic()
        workspace.restore(_STAGE)
        outcome = Outcome(name)
        trial(workspace, outcome)
        outcome.orphans = ends_alone(workspace)
        code, again = workspace.run(*_RUN)
        outcome.same = code == 0 and workspace.digests() == expected
        outcome.duplicates = workspace.duplicates()
        outcome.half_files = workspace.half_files()
        if code:
            outcome.note += f"--- again, exit code {code}\n{again}"
        outcome.seconds = time.monotonic() - start
        yield outcome


def _ended(outcome: Outcome, code: int, output: str, *, codes: tuple[int, ...] = (1, 2)) -> None:
    """Note whether a command ended with one of the codes, and after a refusal with the next step."""
    if code not in codes or (code and not has_next_command(output)):
        outcome.no_next_command = True
        outcome.note += f"--- exit code {code}\n{output}"


def _full_disk(workspace: Workspace, outcome: Outcome, *, free: int) -> None:
    """Run on a small disk in memory, or with a limit for the size of a file if mounting is not allowed."""
    stored, work = workspace.root / "disk", workspace.root / "work"
    shutil.rmtree(stored, ignore_errors=True)
    work.rename(stored)
    work.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(work)], capture_output=True).returncode == 0
    try:
        subprocess.run(["cp", "-a", f"{stored}/.", str(work)], check=True)
        if mounted:
            # Measured, as a file takes whole pages there.
            size = shutil.disk_usage(work).used + free
            subprocess.run(["mount", "-o", f"remount,size={size}", str(work)], check=True)
            outcome.name += ", by a small tmpfs"
            _ended(outcome, *workspace.run(*_RUN))
        else:
            outcome.name += ", by a limit of file sizes"
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (free // 10, free // 10))
            process = workspace.start(*_RUN, preexec_fn=limit)
            output = process.communicate()[0]
            _ended(outcome, process.returncode, output)
    finally:
        ends_alone(workspace)
        if mounted:
            subprocess.run(["umount", str(work)], check=True)
        shutil.rmtree(work)
        stored.rename(work)


def _read_only(workspace: Workspace, outcome: Outcome, *, folder: str) -> None:
    """Mount a folder read-only, as rights do not hold for root."""
    path = workspace.path / folder
    bound = subprocess.run(["mount", "--bind", str(path), str(path)], capture_output=True)
    made = subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], capture_output=True)
    if made.returncode and not bound.returncode:
        subprocess.run(["umount", str(path)], check=True)
    if made.returncode:
        outcome.name += " (not tried: mounting is not allowed)"
        return
    try:
        _ended(outcome, *workspace.run(*_RUN))
    finally:
        ends_alone(workspace)
        subprocess.run(["umount", str(path)], check=True)


def _no_remote(workspace: Workspace, outcome: Outcome) -> None:
    """Put a file where the remote was: the run is refused before it starts, and the message says how to set another."""
    remote = workspace.path / ".dvc-store"
    shutil.rmtree(remote)
    remote.write_text("not a folder")
    code, output = workspace.run(*_RUN)
    _ended(outcome, code, output)
    if "distill:" in output:
        outcome.no_next_command = True
    remote.unlink()


def _no_git(workspace: Workspace, outcome: Outcome) -> None:
    """Remove the repository while the run works."""
    process = workspace.start(*_RUN)
    _await_stage(process, workspace)
    shutil.rmtree(workspace.path / ".git")
    output = process.communicate()[0]
    if process.returncode:
        outcome.no_next_command = True
        outcome.note += output


def _beside(workspace: Workspace, outcome: Outcome, *command: str, codes: tuple[int, ...]) -> None:
    """Start a second command beside a run: it ends with one of the codes, and the run ends as if alone."""
    process = workspace.start(*_RUN)
    _await_stage(process, workspace)
    _ended(outcome, *workspace.run(*command), codes=codes)
    output = process.communicate()[0]
    if process.returncode:
        outcome.no_next_command = True
        outcome.note += f"--- the run\n{output}"


def _await_stage(process: subprocess.Popen[str], workspace: Workspace) -> None:
    """Return when the run trains the student."""
    deadline = time.monotonic() + _SECONDS_TO_WORK
    while process.poll() is None and time.monotonic() < deadline:
        if any("distill" in _words(one) for one in workspace.processes()):
            return
        time.sleep(0.05)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


# As a worker of Prefect does, it reports the error's text.
_NIGHTLY = """
import sys
from dfkd_core.errors import DfkdError
from dfkd_flows.pipeline import pipeline
try:
    pipeline(overrides=["seed=9"])
except DfkdError as error:
    sys.exit(str(error))
"""
_TRIALS: dict[str, Callable[[Workspace, Outcome], None]] = {
    "a full disk, 200 kB free": partial(_full_disk, free=200_000),
    "a full disk, 1.2 MB free": partial(_full_disk, free=1_200_000),
    "a full disk, 1.6 MB free": partial(_full_disk, free=1_600_000),
    "a full disk, 2 MB free": partial(_full_disk, free=2_000_000),
    "a read-only project": partial(_read_only, folder="."),
    "a read-only .dfkd": partial(_read_only, folder=".dfkd"),
    "a read-only artifacts": partial(_read_only, folder="artifacts"),
    "a read-only .dvc": partial(_read_only, folder=".dvc"),
    "a missing remote": _no_remote,
    "no git repository any more": _no_git,
    "dfkd run beside a run": lambda workspace, outcome: _beside(workspace, outcome, *_RUN, codes=(3,)),
    "dfkd run --wait beside a run": lambda workspace, outcome: _beside(workspace, outcome, *_RUN, "--wait", codes=(0,)),
    "dfkd tune beside a run": lambda workspace, outcome: _beside(workspace, outcome, "dfkd", "tune", codes=(3,)),
    "dfkd stage beside a run": lambda workspace, outcome: _beside(
        workspace, outcome, "dfkd", "stage", "teacher", codes=(3,)
    ),
    "dvc repro beside a run": lambda workspace, outcome: _beside(workspace, outcome, "dvc", "repro", codes=(255,)),
    "dvc push beside a run": lambda workspace, outcome: _beside(workspace, outcome, "dvc", "push", codes=(0,)),
    "the nightly flow beside a run": lambda workspace, outcome: _beside(
        workspace, outcome, "python", "-c", _NIGHTLY, codes=(1,)
    ),
}
