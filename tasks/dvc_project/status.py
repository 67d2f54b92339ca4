"""The state of the project in DVC and git."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dfkd_core.common.digests import json_digest
from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code_file import CODE_STAGE
from dfkd_tasks.dvc_project.yaml_files import parse
from dfkd_tasks.processes.endings import count_oom_kills, ending, signal_of
from dfkd_tasks.records.foreign import without_secrets

__all__ = [
    "LOCK",
    "changed_stages",
    "dvc_program",
    "effective_sections",
    "git_commit",
    "inputs_and_outputs",
    "noted_params",
    "results_digest",
    "results_size",
    "run_dvc",
]

LOCK = Path("dvc.lock")


def results_digest(addresses: Sequence[str]) -> str | None:
    """Return the SHA-256 over the parameters and the outputs of stages in dvc.lock, 64 hex digits.

    Code does not count: an edit that changes no output is the same result. Of a teacher's or a student's own
    parameters, those count that the stage reads.

    Args:
        addresses: Stages like `distill@NAME`; None is returned if one of them has not run yet.

    Raises:
        DfkdError: dvc.lock is missing or damaged.
    """
    with _reading():
        stages = _read_lock()
        if not stages.keys() >= {*addresses}:
            return None
        return json_digest(
            {
                name: {
                    "params": effective_sections(_noted(stages[name])),
                    "outs": {out["path"]: out["md5"] for out in stages[name]["outs"]},
                }
                for name in addresses
            }
        )


def noted_params(address: str) -> dict[str, Any]:
    """Return the parameters that a stage in dvc.lock was made with: sections, and entries like `students.NAME`.

    Args:
        address: A stage like `distill@NAME`; nothing is noted of one that has not run yet.

    Raises:
        DfkdError: dvc.lock is missing or damaged.
    """
    with _reading():
        return _noted(_read_lock().get(address, {}))


def effective_sections(noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that a stage has read, with the changes of its teacher and its student.

    Args:
        noted: Result of `noted_params`.
    """
    sections = {name: value for name, value in noted.items() if "." not in name}
    for name in noted.keys() - sections.keys():
        changes = noted[name] or {}
        sections |= {key: _overlaid(old, changes[key]) for key, old in sections.items() if key in changes}
    return sections


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DfkdError(f"{LOCK} cannot be read: {error!r}. Make it again from the caches with: dfkd run") from error


def inputs_and_outputs() -> list[Path]:
    """Return the files and folders that decide whether a stage has changed: dvc.yaml, dvc.lock, and what this lists."""
    entries = [entry for stage in _read_lock().values() for entry in (*stage.get("deps", ()), *stage.get("outs", ()))]
    return [Path("dvc.yaml"), LOCK, *sorted({Path(entry["path"]) for entry in entries})]


def results_size() -> tuple[int, int]:
    """Return the number of files and of bytes of the outputs in dvc.lock that DVC keeps."""
    kept = [out for name, stage in _read_lock().items() if name != CODE_STAGE for out in stage.get("outs", ())]
    return sum(out.get("nfiles", 1) for out in kept), sum(out.get("size", 0) for out in kept)


def _read_lock() -> dict[str, Any]:
    """Return the stages in dvc.lock."""
    return dict(parse(LOCK.read_text(encoding="utf-8"))["stages"])


def _noted(stage: Mapping[str, Any]) -> dict[str, Any]:
    return dict(stage.get("params", {}).get("params.yaml", {}))


def _overlaid(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return old if new is None else new
    return {**old, **{name: _overlaid(old.get(name), value) for name, value in new.items()}}


def changed_stages() -> list[str]:
    """Return the addresses of the stages whose inputs or outputs have changed, according to `dvc status`.

    The stage `code`, which DVC runs each time, is none of them: what it would write is written here.

    Raises:
        DfkdError: `dvc status` fails, for example because dvc.yaml is not valid.
    """
    return sorted({*json.loads(run_dvc("status"))} - {CODE_STAGE})


def run_dvc(command: str, *arguments: str, timeout: float | None = None) -> str:
    """Run `status`, `push`, `pull`, `check` or `remote` of this environment's DVC and return its output.

    What it reports besides is printed, without the passwords in addresses.

    Args:
        command: The command.
        *arguments: As in `dfkd_tasks.dvc_project.program`.
        timeout: Seconds that it may take.

    Raises:
        DfkdError: It failed, with DVC's message, took too long, or was ended from outside.
    """
    oom_kills = count_oom_kills()
    try:
        done = subprocess.run(
            dvc_program(command, *arguments),
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise DfkdError(f"dvc {command} did not end within {timeout} s") from None
    if number := signal_of(done.returncode):
        raise DfkdError(ending(f"dvc {command}", number, oom_kills))
    reported = without_secrets(done.stderr)
    if done.returncode:
        raise DfkdError(f"dvc {command} failed: {reported.strip()}")
    sys.stderr.write(reported)
    return done.stdout


def dvc_program(*arguments: str) -> list[str]:
    """Return the command line of the process that runs DVC."""
    return [sys.executable, "-m", "dfkd_tasks.dvc_project.program", *arguments]


def git_commit() -> str:
    """Return the current commit, with `-dirty` if files differ from it; `unknown` outside and without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
