"""The name under which a project is deployed: of its work pool, and of its deployments on a shared server."""

from __future__ import annotations

import re
from pathlib import Path

from dfkd_core.common.digests import write_json
from dfkd_core.errors import ConfigError
from dfkd_tasks.caching.stored import read_note

__all__ = ["deployed_name", "keep_name", "pool_of", "work_of"]

_NOTE = Path(".dfkd/deployed.json")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def deployed_name() -> str:
    """Return the name of the project at its last deployment; empty without one."""
    found = read_note(_NOTE, dict[str, str]) or {}
    name = found.get("name", "")
    return name if _NAME.fullmatch(name) else ""


def keep_name(name: str) -> None:
    """Note the name for `dfkd up` and the next deployment."""
    write_json(_NOTE, {"name": name})


def work_of(pool: str, server: str) -> str:
    """Return what a worker serves, in words: a pool, and the address of its server's API."""
    return f"{pool} at {server}"


def pool_of(name: str) -> str:
    """Return the work pool of a project by its name.

    Raises:
        ConfigError: The name is not one.
    """
    if name and not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name takes 1 to 32 lower-case letters, digits and '-', for example shop, got {name[:80]!r}"
        )
    return f"dfkd-{name}" if name else "dfkd"
