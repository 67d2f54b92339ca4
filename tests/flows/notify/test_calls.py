"""Calls of a command and of an address: what they get, and what is reported if they fail. None takes too long."""

from __future__ import annotations

import socket
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from shlex import quote
from typing import Any

import psutil
import pytest

from dfkd_flows.notify.calls import post, run_command

WRITE = "import os, sys; open('got', 'w').write(sys.stdin.read() + os.environ['DFKD_EVENT'])"


def test_command__gets_the_text_and_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command([sys.executable, "-c", WRITE], "{}", {"DFKD_EVENT": "failed"}, 30) == ""
    assert Path("got").read_text() == "{}failed"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([sys.executable, "-c", "print('a'); print('no mail'); raise SystemExit(3)"], "exit code 3: no mail"),
        # It need not read its input.
        ([sys.executable, "-c", "raise SystemExit(1)"], "exit code 1"),
        (["no-such-program"], "cannot be started: No such file"),
    ],
)
def test_command__that_fails_is_reported(words: list[str], fault: str) -> None:
    assert fault in run_command(words, "x" * 1_000_000, {}, 30)


def test_command__is_ended_in_time_with_what_it_has_started() -> None:
    start = time.monotonic()
    assert run_command(["sh", "-c", "sleep 60 & wait"], "", {}, 0.3) == "it did not end within 0.3 s (notify.timeout_s)"
    assert time.monotonic() - start < 10


ENDLESS = "import itertools; [print('x' * 100_000) for _ in itertools.count()]"


def test_command__with_endless_output_needs_no_memory() -> None:
    tracemalloc.start()
    assert "did not end within 1 s" in run_command([sys.executable, "-c", ENDLESS], "", {}, 1)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_command__may_leave_a_process_behind(tmp_path: Path) -> None:
    start = time.monotonic()
    assert run_command(["sh", "-c", "sleep 5 &"], "", {}, 60) == ""
    assert "exit code 3: sent" in run_command(["sh", "-c", "echo sent; sleep 5 & exit 3"], "", {}, 60)
    assert time.monotonic() - start < 4


def test_command__in_a_session_of_its_own_is_ended_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = f"import os, time; os.setsid(); open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    run_command(["sh", "-c", f"{sys.executable} -c {quote(program)} & wait"], "", {}, 3)
    pid = int(note.read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_command__has_no_secrets_and_no_escapes_in_its_fault() -> None:
    program = "print('\x1b[31mpost to https://me:SECRET@example.org/?token=SECRET'); raise SystemExit(1)"
    fault = run_command([sys.executable, "-c", program], "", {}, 30)
    assert "post to https://example.org" in fault
    assert "SECRET" not in fault
    assert fault.isprintable()


def test_post__sends_json(receiver: Any) -> None:
    assert post(receiver.url(), '{"event": "test"}', "", 30) == ""
    assert receiver.reports == [{"event": "test"}]
    assert "Authorization" not in receiver.headers[0]


@pytest.mark.parametrize(
    ("path", "fault"),
    [("/moved", "127.0.0.1: the answer is 307, a redirect, which is not followed"), ("/broken", "the answer is 500")],
)
def test_post__that_is_not_taken_is_reported(receiver: Any, path: str, fault: str) -> None:
    assert fault in post(receiver.url(path), "{}", "", 30)
    assert receiver.reports == []


def test_post__ends_in_time_if_the_answer_drips(receiver: Any) -> None:
    start = time.monotonic()
    assert "no answer within 0.5 s" in post(receiver.url("/slow"), "{}", "", 0.5)
    assert time.monotonic() - start < 2


def test_post__reports_a_server_that_is_away_without_its_path(closed_port: int) -> None:
    fault = post(f"http://127.0.0.1:{closed_port}/services/SECRET", "{}", "", 30)
    assert "cannot be reached: Connection refused" in fault
    assert "SECRET" not in fault


def test_post__sends_a_token_to_this_machine_or_by_https_only(receiver: Any) -> None:
    assert post(receiver.url(), "{}", "abc", 30) == ""
    assert receiver.headers[0]["Authorization"] == "Bearer abc"
    assert "by https only" in post("http://example.org/hook", "{}", "abc", 30)


def test_post__repeats_no_token_that_cannot_be_sent(receiver: Any) -> None:
    fault = post(receiver.url(), "{}", "SECRET\n", 30)
    assert "DFKD_WEBHOOK_TOKEN has characters that no token has" in fault
    assert "SECRET" not in fault


def test_post__repeats_nothing_of_an_answer_that_is_not_http() -> None:
    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"\x1b[31m/services/SECRET\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        fault = post(f"http://127.0.0.1:{listener.getsockname()[1]}/services/SECRET", "{}", "", 30)
        thread.join()
    assert fault == "127.0.0.1: it cannot be used, or its answer is not HTTP"
