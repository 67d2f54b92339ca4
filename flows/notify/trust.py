"""The user's word on the command and the address of `notify`: params.yaml alone starts nothing and sends nothing.

The word holds for one command with the present files of the project that it names, or for one address, on this machine:
if one of them changes, for example with `git pull`, it is requested again.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from dfkd_core.common.digests import file_sha256, write_json
from dfkd_core.common.json_files import parse_json
from dfkd_core.common.regular_files import read_regular
from dfkd_flows.settings.notify import NotifyConfig
from dfkd_tasks.caching.state import state_folder

__all__ = ["is_trusted", "trust"]

_WORDS = "trusted_notify.json"
_KEPT_WORDS = 50


def trust(config: NotifyConfig) -> None:
    """Note that the user allows the present command and the present address."""
    values = {"command": config.command, "webhook": config.webhook}
    new = [word for name, value in values.items() if value and (word := _word(name, value)) not in _read()]
    if new:
        write_json(state_folder() / _WORDS, [*_read(), *new][-_KEPT_WORDS:])


def is_trusted(name: str, value: str) -> bool:
    """Return whether the user has allowed a value of `notify.command` or `notify.webhook`."""
    return _word(name, value) in _read()


def _word(name: str, value: str) -> dict[str, object]:
    files = map(Path, shlex.split(value)) if name == "command" else ()
    return {name: value, "files": {path.as_posix(): file_sha256(path) for path in files if _is_own(path)}}


def _is_own(path: Path) -> bool:
    """Return whether a word of a command is a file of the project."""
    try:
        return path.is_file() and path.resolve().is_relative_to(Path.cwd())
    except (OSError, ValueError):
        return False


def _read() -> list[object]:
    try:
        found = parse_json(read_regular(state_folder() / _WORDS))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
