"""The runs in progress that end with the services of a project, found without importing Prefect."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress

import psutil

from dfkd_flows.session.run_notes import RunNote, in_progress
from dfkd_tasks.processes.background import running

__all__ = ["ended_runs"]

_SECONDS_TO_ANSWER = 5


def ended_runs() -> list[str]:
    """Return the names of the runs that use the project's server or its worker, with their processes."""
    server, worker = running("prefect"), running("worker")
    below = set(_below(worker.pid)) if worker else set()
    ended = [note for note in in_progress() if note.pid in below or (server and server.url == note.url)]
    names = _names(server.url, ended) if server and ended else {}
    return [f"{names.get(str(note.id), 'run')} (process {note.pid})" for note in ended]


def _below(pid: int) -> Iterator[int]:
    with suppress(psutil.Error):
        yield from (process.pid for process in psutil.Process(pid).children(recursive=True))


def _names(url: str, notes: Sequence[RunNote]) -> dict[str, str]:
    """Return the names of runs by their ids; without those that the server does not give."""
    query = {"flow_runs": {"id": {"any_": [str(note.id) for note in notes]}}}
    request = urllib.request.Request(
        f"{url}/flow_runs/filter", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with suppress(OSError, ValueError, KeyError, TypeError):
        with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER) as answer:
            return {run["id"]: run["name"] for run in json.load(answer)}
    return {}
