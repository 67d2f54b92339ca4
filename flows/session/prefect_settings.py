"""The address of the user's Prefect server, found as Prefect does but without its import, which takes seconds."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_tasks.processes.background import Background, running

__all__ = ["API_URL", "PROFILES", "Address", "find_address", "keep_profiles", "use_background_server", "users_address"]

API_URL = "PREFECT_API_URL"
"""Environment variable with the address of a server that the user runs."""
PROFILES = "PREFECT_PROFILES_PATH"
"""Environment variable with the file of the user's profiles."""

_HOME = "PREFECT_HOME"


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server that runs already."""

    url: str
    source: str
    """Where it is set."""
    undo: str
    """How to let each run start its own."""


def keep_profiles() -> None:
    """Let Prefect read the user's profiles after its state has moved into the project.

    Call it before PREFECT_HOME is set.
    """
    if PROFILES not in os.environ:
        os.environ[PROFILES] = str(Path(os.environ.get(_HOME) or "~/.prefect").expanduser() / "profiles.toml")


def find_address() -> Address | None:
    """Return the address of the server that Prefect's settings name, or else of the project's `dfkd up`, or None."""
    server = running("prefect")
    return _not_of(server) or (Address(server.url, "dfkd up", "dfkd down") if server else None)


def users_address() -> Address | None:
    """Return the address of the server that Prefect's settings name, None if they name none or that of `dfkd up`."""
    return _not_of(running("prefect"))


def use_background_server() -> None:
    """Let Prefect use the server of `dfkd up`, if it runs and the user's settings name no other.

    Call it before Prefect is imported, in the project's folder.
    """
    server = running("prefect")
    if server and _not_of(server) is None:
        os.environ[API_URL] = server.url


def _not_of(server: Background | None) -> Address | None:
    """Return the first address in Prefect's settings that is not that of the project's own server."""
    return next((found for found in _addresses() if found.url and not (server and server.url == found.url)), None)


def _addresses() -> Iterator[Address]:
    """Yield addresses, also empty ones, in Prefect's order: environment, files of the folder, profile."""
    yield Address(os.environ.get(API_URL, ""), API_URL, f"unset {API_URL}")
    if Path(".env").is_file():
        from dotenv import dotenv_values

        yield Address(dotenv_values(".env").get(API_URL) or "", ".env", f"remove {API_URL} from .env")
    for name, keys in (("prefect.toml", ("api", "url")), ("pyproject.toml", ("tool", "prefect", "api", "url"))):
        yield Address(_text_at(_read(Path(name)), *keys), name, f"remove {'.'.join(keys)} from {name}")
    path = Path(os.environ.get(PROFILES, ""))
    profiles = _read(path)
    active = os.environ.get("PREFECT_PROFILE") or _text_at(profiles, "active")
    url = _text_at(profiles, "profiles", active, API_URL)
    yield Address(url, f"profile {active} in {path}", "export PREFECT_PROFILE=ephemeral")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Prefect reports a damaged file itself.
        return {}


def _text_at(content: Any, *keys: str) -> str:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, str) else ""
