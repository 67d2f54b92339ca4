from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dfkd_tasks.caching.code import PACKAGES

# A command with one process below it, which ends after Ctrl-C or lives on.
# The tests may have been started with nohup.
COMMAND = """
import signal, subprocess, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from dfkd_flows.session.stopping import stoppable
{before}
with stoppable("Continue with: dfkd run") as stop:
    below = subprocess.Popen([sys.executable, "-c", {below!r}], stdout=subprocess.PIPE)
    below.stdout.readline()
    try:
        print(below.pid, flush=True)
        {work}
    except KeyboardInterrupt:
        sys.exit(stop.code)
"""
BELOW = "print(1, flush=True)\nimport time\ntime.sleep(60)"
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + BELOW


def start(*, before: str = "", below: str = BELOW, work: str = "time.sleep(60)") -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(before=before, below=below, work=work)],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    return process, int(process.stdout.readline())


def has_ended(pid: int) -> bool:
    """Return whether a process ends within a few seconds."""
    deadline = time.monotonic() + 5
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signal__ends_all_and_the_last_line_is_the_next_command(number: str, code: int) -> None:
    process, below = start()
    process.send_signal(signal.Signals[number])
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors.splitlines()[-1] == "dfkd: Stopped. Continue with: dfkd run"
    assert has_ended(below)


def test_signal_in_a_text_that_is_executed__ends_a_module_with_the_same_code(tmp_path: Path) -> None:
    work = 'exec("time.sleep(60)")'
    (tmp_path / "command.py").write_text(COMMAND.format(before="", below=BELOW, work=work))
    process = subprocess.Popen(
        [sys.executable, "-m", "command"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_repeated_signal_while_another_library_handles_it__ends_the_process_in_seconds() -> None:
    # As Prefect does during a flow, and then it waits for its threads.
    handler = "signal.signal(signal.SIGTERM, lambda *_: None); [time.sleep(0.1) for _ in range(600)]"
    process, below = start(below=DEAF, work=handler)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert errors == "dfkd: Stopped. Continue with: dfkd run\n"
    assert has_ended(below)


def test_nohup__keeps_the_command_when_the_terminal_closes() -> None:
    process, _ = start(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_closed_terminal__ends_the_command_with_its_code(tmp_path: Path) -> None:
    import pty

    own, other = pty.openpty()
    script = COMMAND.format(before="", below=BELOW, work="time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{script}"],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)}, stdin=other, stdout=other, stderr=other,
        start_new_session=True,
    )  # fmt: skip
    os.close(other)
    below = int(os.read(own, 100))
    os.close(own)
    assert process.wait(timeout=20) == 129
    assert has_ended(below)
