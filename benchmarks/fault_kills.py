"""Kills of every kind of process in every stage: the next run must end as if nothing had happened."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice

import psutil
from fault_workspace import Outcome, Workspace, ends_alone, has_next_command

__all__ = ["CHANGES", "Terminal", "kill_trials", "prepared"]

# One setting per stage, so that only this stage and those after it are made again.
CHANGES = {
    "teacher": "teacher.epochs=2",
    "statistics": "statistics.confidence=0.8",
    "synthesize": "synthesis.methods.soft_target.refinement.iterations=40",
    "distill": "distillation.epochs=2",
    "evaluate": "evaluation.num_bins=10",
}
# Seconds during which a process of a kind is killed after it has started.
SPANS = {
    "command": 35.0,
    "status": 1.5,
    "server": 8.0,
    "dvc": 12.0,
    "stage": 6.0,
    "worker": 4.0,
    "push": 1.0,
    "publishing": 4.0,
}
_OF_COMMAND = ("command", "publishing")
_SECONDS_TO_END = 300.0
_SECONDS_TO_APPEAR = 300.0


@dataclass(frozen=True)
class Kill:
    """A signal to a kind of process in a stage."""

    kind: str
    stage: str
    number: signal.Signals
    delay: float
    in_terminal: bool = False

    @property
    def name(self) -> str:
        how = "closed terminal" if self.in_terminal else self.number.name
        return f"{how} {self.kind} in {self.stage} after {self.delay:.1f} s"


def kill_trials(workspace: Workspace, match: str, number: int, seed: int) -> Iterator[Outcome]:
    """Yield the outcomes of `number` kills whose names match a regular expression.

    The kinds and the stages follow each other; the times are random.
    """
    matching = (kill for kill in _plan(random.Random(seed)) if re.search(match, kill.name))
    for kill in islice(matching, number):
        yield _try(workspace, kill)


def _plan(draw: random.Random) -> Iterator[Kill]:
    stages, kinds = list(CHANGES), list(SPANS)
    signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    for index in count():
        kind = kinds[index % len(kinds)]
        # The kinds and the stages pass each other, so that all pairs come.
        allowed = ["synthesize"] if kind == "worker" else stages
        stage = allowed[(index // len(kinds) + index) % len(allowed)]
        of_command = kind in _OF_COMMAND
        what = signals[(index // len(kinds)) % len(signals)] if of_command else signal.SIGKILL
        in_terminal = kind == "command" and (index // len(kinds)) % len(signals) == len(signals) - 1
        yield Kill(kind, stage, what, draw.uniform(0, SPANS[kind]), in_terminal)


def prepared(workspace: Workspace, stage: str) -> dict[str, str]:
    """Return the digests after a run that nothing disturbs, and keep a state that only lacks the results of `stage`.

    The stages after it are in DVC's cache of runs, as a kill of `stage` concerns them only if its results differ.
    """
    digests = workspace.root / f"{stage}.json"
    if not digests.is_file():
        workspace.restore("base")
        code, output = workspace.run("dfkd", "run", "--set", CHANGES[stage])
        assert code == 0, output
        found = workspace.digests()
        workspace.keep_cache()
        workspace.forget_runs(stage)
        workspace.store(stage)
        digests.write_text(json.dumps(found))
    return dict(json.loads(digests.read_text()))


def _try(workspace: Workspace, kill: Kill) -> Outcome:
    expected = prepared(workspace, kill.stage)
    start = time.monotonic()
    workspace.restore(kill.stage)
    outcome = Outcome(kill.name)
    output, was_hit = _run_and_kill(workspace, kill)
    outcome.orphans = ends_alone(workspace)
    speaks = kill.number is not signal.SIGKILL or kill.kind not in _OF_COMMAND
    if was_hit and speaks and not kill.in_terminal:
        outcome.no_next_command = not has_next_command(output)
    # The command may have been killed before it wrote the change.
    code, again = workspace.run("dfkd", "run", "--set", CHANGES[kill.stage])
    outcome.same = code == 0 and workspace.digests() == expected
    outcome.duplicates = workspace.duplicates() if code == 0 else 0
    outcome.half_files = workspace.half_files()
    if not outcome.is_good:
        outcome.note = f"--- killed\n{output}\n--- again, exit code {code}\n{again}"
    if not was_hit:
        outcome.name += " (ended before)"
    outcome.seconds = time.monotonic() - start
    return outcome


def _run_and_kill(workspace: Workspace, kill: Kill) -> tuple[str, bool]:
    """Start a run, kill one of its processes, and return the run's output and whether the process was there."""
    command = ("dfkd", "run", "--set", CHANGES[kill.stage])
    terminal = Terminal() if kill.in_terminal else None
    process = terminal.start(workspace, *command) if terminal else workspace.start(*command)
    victim = _await_kind(process, kill, terminal)
    was_hit = victim is not None and _lives_for(kill.delay, victim, process, terminal)
    if terminal:
        # Also if the run has ended before.
        terminal.close()
    elif victim and was_hit:
        victim.send_signal(kill.number)
    try:
        return process.communicate(timeout=_SECONDS_TO_END)[0] or "", was_hit
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"no end within {_SECONDS_TO_END} s: {process.communicate()[0]}", was_hit


class Terminal:
    """A terminal that can be closed under a command."""

    def __init__(self) -> None:
        self._own, self._command = pty.openpty()
        os.set_blocking(self._own, False)

    def start(self, workspace: Workspace, *command: str) -> subprocess.Popen[str]:
        """Start a command that the terminal controls."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self._command)
        process = workspace.start(*command, **streams, preexec_fn=_take_terminal)
        os.close(self._command)
        return process

    def read(self) -> None:
        """Read what was written, so that the command can go on."""
        with suppress(OSError):
            os.read(self._own, 65536)

    def close(self) -> None:
        """Close the terminal, which sends SIGHUP to the command."""
        os.close(self._own)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _await_kind(process: subprocess.Popen[str], kill: Kill, terminal: Terminal | None) -> psutil.Process | None:
    """Return the first process of the kind; None if the run ends before one appears."""
    root, matches = psutil.Process(process.pid), _KINDS[kill.kind]
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while process.poll() is None and time.monotonic() < deadline:
        for candidate in _tree(root):
            with suppress(psutil.Error):
                if matches(candidate.cmdline(), kill.stage):
                    return root if kill.kind in _OF_COMMAND else candidate
        _pause(terminal)
    return None


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _lives_for(
    seconds: float, victim: psutil.Process, process: subprocess.Popen[str], terminal: Terminal | None
) -> bool:
    """Return whether a process and its run are there after so many seconds."""
    deadline = time.monotonic() + seconds
    while _lives(victim) and process.poll() is None:
        if time.monotonic() >= deadline:
            return True
        _pause(terminal)
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _pause(terminal: Terminal | None) -> None:
    if terminal:
        terminal.read()
    time.sleep(0.02)


def _is_program(words: list[str], name: str) -> bool:
    return words[1:3] == ["-m", "dfkd_tasks.dvc_project.program"] and words[3:4] == [name]


_KINDS: dict[str, Callable[[list[str], str], bool]] = {
    "command": lambda words, stage: words[2:3] == ["run"],
    "status": lambda words, stage: _is_program(words, "status"),
    "server": lambda words, stage: words[1:3] == ["-m", "dfkd_flows.session.server"],
    "dvc": lambda words, stage: _is_program(words, "repro"),
    "stage": lambda words, stage: words[2:4] == ["stage", stage],
    "worker": lambda words, stage: any("spawn_main" in word for word in words),
    "push": lambda words, stage: _is_program(words, "push"),
    # Publishing begins when the results are pushed.
    "publishing": lambda words, stage: _is_program(words, "push"),
}
