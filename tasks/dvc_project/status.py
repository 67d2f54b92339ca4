"""The state of the project in DVC and git; nothing is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from dfkd_core.common.digests import json_digest
from dfkd_core.errors import DfkdError

__all__ = ["LOCK", "changed_stages", "dvc_command", "git_commit", "last_error", "results_digest"]

LOCK = Path("dvc.lock")


def results_digest() -> str:
    """Return the SHA-256 over the parameters and the outputs of all stages in dvc.lock, 64 hex digits.

    Code does not count: an edit that changes no output is the same result.

    Raises:
        DfkdError: dvc.lock is missing or damaged.
    """
    try:
        stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
        return json_digest(
            {
                name: {"params": stage.get("params"), "outs": {out["path"]: out["md5"] for out in stage["outs"]}}
                for name, stage in stages.items()
            }
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DfkdError(f"{LOCK} cannot be read: {error!r}. Write it again with: dvc repro") from error


def changed_stages() -> list[str]:
    """Return the stages whose inputs or outputs have changed since they ran, according to `dvc status`.

    Raises:
        DfkdError: `dvc status` fails, for example because dvc.yaml is not valid.
    """
    found = subprocess.run(
        dvc_command("status", "--json"), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if found.returncode:
        raise DfkdError(f"dvc status failed: {last_error(found.stderr)}")
    return sorted(json.loads(found.stdout))


def git_commit() -> str:
    """Return the current commit, with `-dirty` if files differ from it; `unknown` outside of git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def dvc_command(*arguments: str) -> Sequence[str]:
    """Return the command line of this environment's DVC."""
    return [sys.executable, "-m", "dvc", *arguments]


def last_error(text: str) -> str:
    """Return the last line of DVC's output that reports an error."""
    return next((line for line in reversed(text.strip().splitlines()) if line.startswith("ERROR")), text.strip())
