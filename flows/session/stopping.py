"""An orderly end within seconds after Ctrl-C, SIGTERM or a closed terminal.

Python passes the number of a signal to a file descriptor whichever handler is installed, so a thread notices a signal
also while Prefect has its own handler.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from dfkd_tasks.processes.lifeline import descendants, interrupt, kill

__all__ = ["Stop", "stoppable"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_TO_END = 5.0
_SECONDS_BETWEEN_LOOKS = 0.1
_SHELL_BASE = 128


class Stop:
    """Whether a signal asked this process to end, and the end."""

    def __init__(self, message: str) -> None:
        """Prepare to write `message` at the end."""
        self._message = message
        self._raised = self._written = False
        self._one_at_a_time = threading.Lock()
        self._deadline = 0.0
        self.number = 0
        """The first signal that came; 0 if none did."""

    @property
    def code(self) -> int:
        """The exit code, as a shell reports the signal."""
        return _SHELL_BASE + self.number

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the main thread once; a repeated signal must not disturb the end."""
        self.notice(number)
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def notice(self, number: int) -> None:
        """Pass the first signal to the processes below, and end all of them and this one after some seconds."""
        if self.number or number not in _SIGNALS:
            return
        self.number = number
        self._deadline = time.monotonic() + _SECONDS_TO_END
        threading.Thread(target=self._end_in_time, name="end", daemon=True).start()

    def finish(self) -> None:
        """Wait for the processes below this one to end, and write the message as the last line."""
        while (left := descendants(session=os.getsid(0))) and time.monotonic() < self._deadline:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        kill(left)
        # After an interrupt in the `exec` of a text, as in an import of data classes, `python -m` would end by SIGINT
        # and not with our exit code. Another `exec` clears this state.
        exec("pass")
        self._write()

    def _end_in_time(self) -> None:
        # Workers ignore Ctrl-C, and Prefect would wait for their shards.
        for worker in multiprocessing.active_children():
            worker.kill()
        interrupt(descendants(session=os.getsid(0)))
        time.sleep(max(0.0, self._deadline - time.monotonic()))
        kill(descendants())
        self._write()
        os._exit(self.code)

    def _write(self) -> None:
        with self._one_at_a_time:
            if not self._written:
                self._written = True
                _write_error(f"Stopped. {self._message}".strip())


@contextmanager
def stoppable(message: str = "") -> Iterator[Stop]:
    """End the block with KeyboardInterrupt after the first of the signals, and all processes within seconds.

    Call it in the main thread.

    Args:
        message: What the user can do next.
    """
    stop = Stop(message)
    # `nohup` makes a command ignore a closed terminal.
    caught = [
        number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT
    ]
    before = {number: signal.signal(number, stop.handle) for number in caught}
    with _noticing(stop):
        try:
            yield stop
        finally:
            if stop.number:
                # The handlers stay, as they ignore further signals.
                stop.finish()
            else:
                _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def _noticing(stop: Stop) -> Iterator[None]:
    """Call `stop.notice` for each signal during the block, whichever handler is installed."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def read() -> None:
        while received := reader.recv(1):
            stop.notice(received[0])

    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


def _write_error(text: str) -> None:
    """Write a line to stderr. If the terminal is closed, nothing is written, also not later at the exit."""
    for stream, line in ((sys.stdout, ""), (sys.stderr, f"dfkd: {text}\n")):
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
