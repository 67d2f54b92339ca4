"""The starter: a process of a run that has done all slow imports. Each stage is a copy of it, and begins at once.

`dfkd stage` passes its arguments, environment and open files to the copy, and ends as the copy does. If there is no
starter, or if it has another environment or older code, the stage does its own imports.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType

from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.caching.file_states import FileState, file_state

__all__ = ["PARENT_RUN", "STARTER", "prepare_starter", "run_by_starter", "starter"]

STARTER = "DFKD_STARTER"
"""Environment variable with the folder of the project whose starter a stage may use."""

PARENT_RUN = "DFKD_PARENT_RUN"
"""Environment variable with the flow run whose stages are its sub-runs, see `dfkd_flows.shown.parent`."""

# Relative, as the system allows only about 100 characters.
_SOCKET = Path(".dfkd/starter.sock")
_LOG = Path(".dfkd/starter.log")
_STREAMS = (0, 1, 2)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHELL_BASE = 128
_CODE = ("dfkd_core", "dfkd_tasks", "dfkd_flows")
# Of the run, the shell, the terminal and DVC: they differ from stage to stage and change no import.
_FREE = (PARENT_RUN, "_", "COLUMNS", "LINES", "OLDPWD", "PATH", "PWD", "SHLVL")
_FREE_OF_DVC = "DVC"


@dataclass(frozen=True, slots=True)
class _Request:
    """What a stage passes to the starter, besides its open files."""

    arguments: list[str]
    environment: dict[str, str]
    packages: str
    pid: int


_started: list[subprocess.Popen[bytes]] = []


def prepare_starter() -> None:
    """Start the starter of the current project, unless there is one; it ends with this process.

    Call it when the environment of the stages is complete. Where a copy of a process is unsafe, nothing happens.
    """
    # On macOS, libraries of the system fail in a copy.
    if not _started and sys.platform == "linux":
        # Such as a file system without sockets, or a full disk: the stages do their own imports.
        with suppress(OSError):
            _started.append(_start())
            os.environ[STARTER] = os.getcwd()


@contextmanager
def starter() -> Iterator[None]:
    """Let the stages that are run in the block use a starter; see `prepare_starter`, which may come earlier."""
    prepare_starter()
    try:
        yield
        _end(at_once=True)
    finally:
        # It ends by itself when it can read no more, but after its copy, which may be ending in order.
        _end()


def _end(*, at_once: bool = False) -> None:
    if _started:
        process = _started.pop()
        os.environ.pop(STARTER, None)
        if at_once:
            process.kill()
        process.communicate()
        with suppress(OSError):
            _SOCKET.unlink()


def _start() -> subprocess.Popen[bytes]:
    _SOCKET.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, _LOG.open("wb") as log:
        listener.bind(str(_SOCKET))
        # Before anybody can connect.
        _SOCKET.chmod(0o600)
        listener.listen()
        # In a session of its own it does not receive Ctrl-C, which each stage passes to its copy.
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=dict(os.environ),
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )


def run_by_starter() -> int | None:
    """Let a copy of the starter run this command, and return its exit code; None if this process must do it.

    Until it ends, signals to this process are passed to it. It ends if this process is killed.
    """
    if os.environ.get(STARTER) != os.getcwd():
        return None
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(_SOCKET))
        socket.send_fds(connection, [b"+"], _STREAMS)
        request = _Request(sys.argv[1:], dict(os.environ), str(PACKAGES), os.getpid())
        connection.sendall(json.dumps(asdict(request)).encode())
        connection.shutdown(socket.SHUT_WR)
        return _wait_for_copy(connection)
    return None


def _wait_for_copy(connection: socket.socket) -> int | None:
    with connection.makefile() as answers:
        if not (pid := answers.readline()):
            return None

        def forward(number: int, frame: FrameType | None) -> None:
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, forward)
        status = answers.readline()
    # Without an answer the starter was killed, and its copy ends.
    return int(status) if status else _SHELL_BASE + signal.SIGKILL


def _serve(listener: socket.socket) -> None:
    """Answer requests until the owner ends; return in each copy, which has become what the request asks for."""
    before, own = _code_states(), dict(os.environ)
    _import_all()
    while _owner_lives(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError, ValueError, TypeError):
            _, streams, *_ = socket.recv_fds(connection, 1, len(_STREAMS))
            request = _Request(**json.loads(_read(connection)))
            if len(streams) == len(_STREAMS) and _is_same(request, own) and before == _code_states():
                if not (pid := os.fork()):
                    listener.close()
                    _become(request, streams)
                    return
                _report(connection, pid)
            for stream in streams:
                os.close(stream)
    sys.exit()


def _import_all() -> None:
    stages = import_module("dfkd_flows.stages.command").STAGES
    for module in ("dfkd_flows.cli", "dfkd_flows.settings.parsing", *(module for module, _ in stages.values())):
        import_module(module)
    # A training imports torch's compiler, and pictures or a network of torchvision that.
    for module in ("torch._dynamo", "dfkd_core.common.vision"):
        import_module(module)
    # Else each copy looks through all of these objects for garbage, and so makes copies of their memory.
    gc.freeze()


def _owner_lives(listener: socket.socket) -> bool:
    """Wait for a request; return false if the owner has closed its end of the pipe."""
    readable, _, _ = select.select([listener, sys.stdin], [], [])
    return listener in readable


def _read(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.read()


def _is_same(request: _Request, own: Mapping[str, str]) -> bool:
    """Return whether a process of its own would have the same packages and the same environment at its imports."""
    differing = {name for name, _ in request.environment.items() ^ own.items()} - {STARTER, *_FREE}
    return request.packages == str(PACKAGES) and all(name.startswith(_FREE_OF_DVC) for name in differing)


def _code_states() -> dict[str, FileState]:
    files = (path for name in _CODE for path in (PACKAGES / name).rglob("*.py"))
    return {str(path): file_state(str(path)) for path in files}


def _report(connection: socket.socket, pid: int) -> None:
    """Report the copy's id, and its exit code when it has ended."""
    with suppress(OSError):
        connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    connection.sendall(f"{code if code >= 0 else _SHELL_BASE - code}\n".encode())


def _become(request: _Request, streams: list[int]) -> None:
    """Take over the caller's open files, arguments and environment, and end when it ends."""
    import psutil

    from dfkd_tasks.processes.lifeline import end_with

    for stream, given in zip(_STREAMS, streams, strict=True):
        os.dup2(given, stream)
        os.close(given)
    os.environ.clear()
    os.environ.update(request.environment)
    del os.environ[STARTER]
    sys.argv[1:] = request.arguments
    end_with([psutil.Process(request.pid), psutil.Process(os.getppid())])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    # A copy is the command itself, which is above all folders.
    import_module("dfkd_flows.cli").app()
