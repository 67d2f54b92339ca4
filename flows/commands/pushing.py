"""`dfkd push`: an export goes to Hugging Face's Hub, after what it would upload was shown and agreed to."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfkd_core.errors import ConfigError, DfkdError, first_line
from dfkd_core.export.report import EXPORT_FILE, read_digests, unchanged_files
from dfkd_core.installing import install_command
from dfkd_flows.commands.exporting_sets import SET_FILE
from dfkd_flows.session.display import say
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["push_to_hub"]

_TOKEN = "HF_TOKEN"
_ENDPOINT = "HF_ENDPOINT"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_LISTED = 20
_CARD = "README.md"
# What `dfkd export-set` writes; a user's own files beside it stay here.
_OF_SETS = re.compile(
    r"README\.md|transfer_set\.json|_info\.json|class_map\.txt|train-\d{6}\.tar|train-\d{5}-of-\d{5}\.parquet"
    r"|train/metadata\.jsonl|train/[^/]+/\d{8,}\.png"
)


@dataclass(frozen=True, slots=True)
class _Upload:
    kind: Literal["model", "dataset"]
    files: tuple[Path, ...]
    """Relative to the folder."""


def push_to_hub(folder: Path, repository: str, *, public: bool, yes: bool) -> None:
    """Show what would be uploaded, ask, and upload the files of an export in one commit.

    Args:
        folder: A folder of `dfkd export` or `dfkd export-set`.
        repository: OWNER/NAME; it is made if it does not exist.
        public: Whether a new repository is public.
        yes: Whether to upload without a question.

    Raises:
        ConfigError: The folder is no export, the name is wrong, there is no token, or no terminal for the question.
        DfkdError: The package is missing, the user does not agree, or the Hub refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--hub takes OWNER/NAME, got {repository!r}. Try: --hub OWNER/{folder.name}")
    upload = _upload_of(folder)
    hub, constants = _hub()
    token = os.environ.get(_TOKEN, "").strip()
    endpoint = os.environ.get(_ENDPOINT) or constants.ENDPOINT
    say("\n".join(_plan(folder, upload, repository, endpoint, public=public)))
    if not token:
        raise ConfigError(f"Nothing was uploaded: {_TOKEN} is not set. Set it to a token with the right to write")
    if not yes:
        _ask()
    api = hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repository, repo_type=upload.kind, private=not public, exist_ok=True)
        done = api.create_commit(
            repository,
            [hub.CommitOperationAdd(file.as_posix(), folder / file) for file in upload.files],
            commit_message="Upload by dfkd push",
            repo_type=upload.kind,
        )
    # The package raises errors of its own, of httpx and of the system.
    except Exception as error:
        reason = without_secrets(first_line(error)).replace(token, "***")
        raise DfkdError(
            f"The upload to {repository} failed: {reason}. Nothing here has changed. Repeat the same command"
        ) from None
    say(f"Uploaded: {done.commit_url}")


def _upload_of(folder: Path) -> _Upload:
    """Return the files of an export, which nobody has changed since.

    Raises:
        ConfigError: The folder is no export, or a file has changed, is missing or is a link.
    """
    if (digests := read_digests(folder)) is not None:
        if changed := sorted({*digests} - {*unchanged_files(folder)} - {_CARD}):
            raise ConfigError(f"{folder / changed[0]} has changed since the export. Make it again with: dfkd export")
        return _Upload("model", _checked(folder, [*digests, EXPORT_FILE], remedy="dfkd export --card"))
    if (folder / SET_FILE).is_file() and (folder / _CARD).is_file():
        return _Upload("dataset", _checked(folder, _set_files(folder), remedy="dfkd export-set"))
    raise ConfigError(f"{folder} is no export. Make one with: dfkd export --card, or dfkd export-set")


def _checked(folder: Path, names: Iterable[str], *, remedy: str) -> tuple[Path, ...]:
    """Return the sorted paths of files within the folder: a link could lead to a file that is not for others."""
    found = tuple(map(Path, sorted(names)))
    for file in found:
        steps = [folder / step for step in (file, *file.parents[:-1])]
        if not steps[0].is_file() or any(step.is_symlink() for step in steps):
            raise ConfigError(f"{steps[0]} is no file of this folder. Make it again with: {remedy}")
    return found


def _set_files(folder: Path) -> Iterator[str]:
    """Yield the names of the files of an exported set; a linked folder is not entered."""
    for place, _, files in os.walk(folder):
        names = ((Path(place) / file).relative_to(folder).as_posix() for file in files)
        yield from filter(_OF_SETS.fullmatch, names)


def _hub() -> tuple[Any, Any]:
    """Return Hugging Face's package, without its progress bars, and its constants."""
    try:
        hub = importlib.import_module("huggingface_hub")
        # Not loaded by the package itself.
        constants, utils = (importlib.import_module(f"huggingface_hub.{name}") for name in ("constants", "utils"))
    except ModuleNotFoundError:
        raise DfkdError(f"dfkd push needs huggingface_hub. Install it with: {install_command('hub')}") from None
    utils.disable_progress_bars()
    return hub, constants


def _plan(folder: Path, upload: _Upload, repository: str, endpoint: str, *, public: bool) -> Iterator[str]:
    sizes = {file: (folder / file).stat().st_size for file in upload.files}
    yield f"To {endpoint}, {upload.kind} {repository} ({'public' if public else 'private'} if it is new):"
    yield from (f"  {file}  {sizes[file] / 1000:,.0f} kB" for file in upload.files[:_MOST_LISTED])
    if (others := len(sizes) - _MOST_LISTED) > 0:
        yield f"  and {others:,} others"
    yield f"  {len(sizes):,} files, {sum(sizes.values()) / 1e6:,.1f} MB"
    if upload.kind == "model" and Path(_CARD) not in sizes:
        yield "  There is no card. Add one with: dfkd export --card"


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigError("Nothing was uploaded: there is no terminal for the question. Upload with: --yes")
    try:
        answer = input("Upload these files? [y/N] ")
    except EOFError:
        answer = ""
    if not answer.strip().lower().startswith("y"):
        raise DfkdError("Nothing was uploaded")
