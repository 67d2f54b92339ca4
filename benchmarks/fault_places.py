"""Full disks, folders without rights, missing remotes and other commands beside a run."""

from __future__ import annotations

import re
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
_SECONDS_TO_WORK = 300.0


def place_trials(workspace: Workspace, match: str = "", number: int | None = None) -> Iterator[Outcome]:
    """Yield the outcomes of the faults whose names match a regular expression, at most `number` of them."""
    chosen = [(name, trial) for name, trial in _TRIALS.items() if re.search(match, name)][:number]
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


def _no_place(workspace: Workspace, outcome: Outcome) -> None:
    """Refuse to start where a folder is mounted read-only, as rights do not hold for root, or the remote is a file."""
    for folder in (".", ".dfkd", "artifacts", ".dvc"):
        path = str(workspace.path / folder)
        bound = subprocess.run(["mount", "--bind", path, path], capture_output=True).returncode == 0
        made = bound and subprocess.run(["mount", "-o", "remount,bind,ro", path], capture_output=True).returncode == 0
        try:
            if made:
                _ended(outcome, *workspace.run(*_RUN))
            else:
                outcome.name += f" ({folder} not tried: mounting is not allowed)"
        finally:
            ends_alone(workspace)
            if bound:
                subprocess.run(["umount", path], check=True)
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
    _must_succeed(outcome, process)


def _beside(workspace: Workspace, outcome: Outcome) -> None:
    """Start other commands beside a run that is held in its stage: all but --wait end, and the run ends as if alone."""
    process = workspace.start(*_RUN)
    stage = _await_stage(process, workspace)
    assert stage
    stage.suspend()
    for command, code in _BESIDE.items():
        _ended(outcome, *workspace.run(*command), codes=(code,))
    waiting = workspace.start(*_RUN, "--wait")
    assert waiting.stdout
    line = waiting.stdout.readline()
    stage.resume()
    _must_succeed(outcome, process)
    _must_succeed(outcome, waiting)
    if not line.startswith("Waiting for the other run"):
        outcome.no_next_command = True
        outcome.note += f"--- --wait printed first: {line}"


def _must_succeed(outcome: Outcome, process: subprocess.Popen[str]) -> None:
    output = process.communicate()[0]
    if process.returncode:
        outcome.no_next_command = True
        outcome.note += f"--- exit code {process.returncode}\n{output}"


def _await_stage(process: subprocess.Popen[str], workspace: Workspace) -> psutil.Process | None:
    """Return the process that trains the student as soon as it is there, None if the run ends before."""
    deadline = time.monotonic() + _SECONDS_TO_WORK
    while process.poll() is None and time.monotonic() < deadline:
        for one in workspace.processes():
            if _words(one)[2:4] == ["stage", _STAGE]:
                return one
        time.sleep(0.05)
    return None


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


# The state of Prefect stays in the project, and an error is reported by its text.
_NIGHTLY = """
import sys
from dfkd_core.errors import DfkdError
from dfkd_flows.session.environment import enter_project, prepare_environment
prepare_environment(enter_project())
from dfkd_flows.pipeline import pipeline
try:
    pipeline(overrides=["seed=9"])
except DfkdError as error:
    sys.exit(str(error))
"""
_BESIDE = {
    _RUN: 3,
    ("dfkd", "tune"): 3,
    ("dfkd", "stage", "teacher"): 3,
    ("dvc", "repro"): 255,
    ("dvc", "push"): 0,
    ("python", "-c", _NIGHTLY): 1,
}
_TRIALS: dict[str, Callable[[Workspace, Outcome], None]] = {
    "a full disk, 200 kB free": partial(_full_disk, free=200_000),
    "a full disk, 1.2 MB free": partial(_full_disk, free=1_200_000),
    "a full disk, 2 MB free": partial(_full_disk, free=2_000_000),
    "read-only folders and a remote that is a file": _no_place,
    "no git repository any more": _no_git,
    "other commands beside a run": _beside,
}
