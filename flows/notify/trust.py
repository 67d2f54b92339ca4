"""The user's word on the command and the address of `notify`: params.yaml alone starts nothing and sends nothing.

The word holds for one command with the present files of the repository that it names, or for one address, on this
machine: if one of them changes, for example with `git pull`, it is requested again. Results are none of these files, as
each run writes them.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from dfkd_core.common.digests import file_sha256
from dfkd_flows.settings.notify import NotifyConfig
from dfkd_tasks.caching.words import keep_words, kept_words
from dfkd_tasks.caching.workspace import METRICS, REPORTS, STATE, TEACHERS
from dfkd_tasks.dvc_project.git_state import repository_of

__all__ = ["is_trusted", "trust"]

_WORDS = "trusted_notify.json"
_KEPT_WORDS = 50
_WRITTEN_BY_RUNS = (STATE, TEACHERS.parent, METRICS, REPORTS)
_MODULE = re.compile(r"(?:-m)?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


def trust(config: NotifyConfig) -> None:
    """Note that the user allows the present command and the present address."""
    values = {"command": config.command, "webhook": config.webhook}
    keep_words(_WORDS, [_word(name, value) for name, value in values.items() if value], most=_KEPT_WORDS)


def is_trusted(name: str, value: str) -> bool:
    """Return whether the user has allowed a value of `notify.command` or `notify.webhook`."""
    return _word(name, value) in kept_words(_WORDS)


def _word(name: str, value: str) -> dict[str, object]:
    paths = sorted(set(_named(value))) if name == "command" else ()
    return {name: value, "files": {path.as_posix(): state for path in paths if (state := _state(path))}}


def _named(command: str) -> Iterator[Path]:
    """Yield the paths that a command may run: its words, those within a word as of `sh -c`, and modules of Python."""
    for word in _split(command):
        yield from _python_files(Path(word))
        yield from _named(word) if word != command else ()
        if "=" in word:
            yield from _named(word.partition("=")[2])
        if found := _MODULE.fullmatch(word):
            module = Path(found[1].replace(".", "/"))
            yield from (*_python_files(module), module.with_name(f"{module.name}.py"))


def _split(text: str) -> list[str]:
    """Return the words of a command as a shell reads them, which also separates `;` and `&&`."""
    words = shlex.shlex(text, posix=True, punctuation_chars=True)
    words.whitespace_split, words.commenters = True, ""
    try:
        return list(words)
    except ValueError:
        # Half of a quotation in a word.
        return []


def _python_files(path: Path) -> Iterator[Path]:
    """Yield a path, and of a folder, which Python can run, the files of Python in it; of the project's, the first."""
    yield path
    if _is_own(path) and path.is_dir():
        is_whole = Path.cwd().is_relative_to(path.resolve())
        yield from path.glob("__main__.py") if is_whole else path.rglob("*.py")


def _state(path: Path) -> str:
    """Return the digest of a file of the repository, or where a link leads; empty for what is no such file."""
    try:
        if not _is_own(path) or not path.is_file():
            return ""
        target = path.resolve()
        return file_sha256(path) if target.is_relative_to(_repository()) else f"-> {target}"
    except (OSError, ValueError):
        return ""


def _is_own(path: Path) -> bool:
    """Return whether a path is in the repository, or leads into it, and no run writes it."""
    try:
        places = Path(os.path.abspath(path)), path.resolve()
    except (OSError, ValueError):
        return False
    written = [Path.cwd() / folder for folder in _WRITTEN_BY_RUNS]
    is_written = any(places[0].is_relative_to(folder) for folder in written)
    return not is_written and any(place.is_relative_to(_repository()) for place in places)


def _repository() -> Path:
    """Return the folder that a pull can change: that of the repository, or the project's if there is none."""
    return repository_of(Path.cwd()) or Path.cwd()
