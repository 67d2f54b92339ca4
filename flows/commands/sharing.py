"""`dfkd share`: results go to a place that colleagues reach, and the commands that they and the user type are printed.

It commits nothing: the message, other changes, hooks and signatures are the user's.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_core.installing import colleagues_command
from dfkd_core.models.factories import factory_file
from dfkd_core.teachers.loading import source_files
from dfkd_flows.session.display import say
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.stages.names import label
from dfkd_tasks.dvc_project.files import (
    committed_remotes,
    committed_secrets,
    default_remote,
    file_faults,
    folder_of,
    is_folder,
    is_in_project,
    storage_faults,
)
from dfkd_tasks.dvc_project.git_state import (
    in_repository,
    origin,
    place_in_repository,
    to_commit,
    uncommitted,
    unpushed,
)
from dfkd_tasks.dvc_project.remote import check_place, push_results, set_default_remote
from dfkd_tasks.dvc_project.status import LOCK, changed_stages, results_size
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["share_results"]

_NEW_REMOTE = "shared"
_CONFIG = Path(".dvc/config")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Of a folder's name they are marks of DVC's configuration file, and no address has them.
_MARKS = re.compile(r"[\"',#\x00-\x1f\x7f]")
_OTHER_FORM = re.compile(r"([\w.-]+@[\w.-]+):(?!//)(.*)")
_ONE_SLASH = re.compile(r"(\w[\w+.-]+):(?!//)/*(.*)")
_LARGE = 5_000_000


@dataclass(frozen=True, slots=True)
class _Remote:
    name: str
    url: str
    is_set: bool
    """Whether clones get it as the default one already."""


def share_results(url: str | None, name: str | None, here: Path) -> None:
    """Copy the results to a remote, which becomes the default one if there is none, and print what to type.

    Everything is checked before anything is written. Hold the project's lock.

    Args:
        url: Address of the remote; None takes the one that is set.
        name: Name of the remote; None takes the default one, or a new one.
        here: Folder that a relative `url` belongs to.

    Raises:
        ConfigError: The address or the name has a fault, or another remote is set.
        DfkdError: There is no git repository, there are no results of the present settings, or the remote cannot be
            written.
    """
    params = load_params()
    _check_results()
    remote = _wanted(url, name, here)
    check_place(remote.name, remote.url)
    if changed := changed_stages():
        older = ", ".join(label(address, params) for address in changed)
        raise DfkdError(f"The results are older than what they depend on: {older}. Make them with: dfkd run")
    if not remote.is_set:
        set_default_remote(remote.name, remote.url)
    say(f"Copying the results to {remote.name}, {without_secrets(remote.url)} ...")
    num_new = push_results(remote.name)
    say("\n".join(_report(params, num_new)))


def _check_results() -> None:
    if not in_repository():
        raise DfkdError(f"{Path.cwd()} is in no git repository, from which colleagues clone. Make one with: git init")
    if not LOCK.is_file():
        raise DfkdError("There are no results yet. Make them with: dfkd run")
    if faults := [*file_faults(), *_config_faults()]:
        raise DfkdError("\n".join(faults))


def _config_faults() -> Iterator[str]:
    """Yield why .dvc/config must not be committed as it is."""
    try:
        secrets, (_, urls) = committed_secrets(), committed_remotes()
    except configparser.Error:
        yield from storage_faults()
        return
    for remote, option in secrets:
        yield (
            f"{_CONFIG} holds the {option} of the remote {remote!r}, which git would publish. Keep it on this machine "
            f"with: dvc remote modify --local {remote} {option} VALUE && dvc remote modify --unset {remote} {option}"
        )
    for remote, url in urls.items():
        if _has_secret(url):
            yield (
                f"{_CONFIG} holds a password in the address of the remote {remote!r}, which git would publish. Replace "
                f"it with: dvc remote modify {remote} url {without_secrets(url)} (and give the password with: dvc "
                f"remote modify --local {remote} password VALUE)"
            )


def _wanted(url: str | None, name: str | None, here: Path) -> _Remote:
    """Return the remote that is meant. One that is set already keeps its address."""
    present, urls = committed_remotes()
    own = not present or is_in_project(urls.get(present, ""))
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(f"--remote takes letters, digits, '_' and '-', got {name!r}. Try: --remote {_NEW_REMOTE}")
    if url is None:
        wanted = name or ("" if own else present)
        if not urls.get(wanted) or is_in_project(urls[wanted]):
            raise ConfigError(_lacking(wanted, urls))
        # This machine may have another address of the same place, such as another mount.
        here_too = dict([default_remote()]).get(wanted, urls[wanted])
        return _Remote(wanted, here_too, is_set=wanted == present)
    address = _address(url, here)
    wanted = name or (_NEW_REMOTE if own else present)
    known = _same_place(urls.get(wanted, address), address)
    if not known and not (name and is_in_project(urls[name])):
        raise ConfigError(
            f"The remote {wanted!r} is {without_secrets(urls[wanted])} and stays. Copy to it with: dfkd share"
            f"{'' if wanted == present else f' --remote {wanted}'} (or add another one: dfkd share {quote(url)} "
            "--remote NAME)"
        )
    return _Remote(wanted, address, is_set=wanted == present and wanted in urls and known)


def _same_place(one: str, other: str) -> bool:
    return one == other or (is_folder(one) and is_folder(other) and folder_of(one) == folder_of(other))


def _lacking(wanted: str, urls: dict[str, str]) -> str:
    """Return why there is no remote that colleagues reach."""
    example = "dfkd share s3://BUCKET/FOLDER, ssh://USER@HOST/FOLDER or /FOLDER"
    name, url = default_remote()
    if wanted and wanted not in urls:
        return f"There is no remote {wanted!r} in {_CONFIG}. Give its address: dfkd share URL --remote {wanted}"
    if url and url != urls.get(name) and not is_in_project(url):
        return (
            f"The remote {name!r} is set on this machine alone, so a clone would not know it. Put it into {_CONFIG} "
            f"with: dfkd share {quote(without_secrets(url))} --remote {name}"
        )
    return f"DVC's remote is a folder of this project, which no colleague sees. Name a place that they reach: {example}"


def _address(url: str, here: Path) -> str:
    """Return an address as DVC takes it; a folder becomes an absolute path.

    Raises:
        ConfigError: It holds a credential, or is no address.
    """
    if _has_secret(url):
        raise ConfigError(
            f"The address {without_secrets(url)} was given with a credential, which git would publish. Leave it out, "
            "and give it to DVC on this machine alone: dvc remote modify --local NAME password VALUE (for AWS: "
            "aws configure, and dvc remote modify --local NAME profile PROFILE)"
        )
    if found := _MARKS.search(url):
        raise ConfigError(
            f"The address {url!r} has the character {found[0]!r}, which DVC cannot keep. Give another one"
        )
    if found := _OTHER_FORM.fullmatch(url):
        raise ConfigError(f"{url} is no address of DVC. Write: dfkd share ssh://{found[1]}/{found[2].lstrip('/')}")
    if (found := _ONE_SLASH.fullmatch(url)) and not (here / url).exists():
        raise ConfigError(f"{url} is no address of DVC. Write: dfkd share {found[1]}://{found[2]}")
    if not is_folder(url):
        return url
    folder = os.path.abspath(here / Path(url.removeprefix("file://")).expanduser())
    if is_in_project(folder):
        raise ConfigError(f"{folder} is in this project, where no colleague sees it. Name a folder outside of it")
    return folder


def _has_secret(url: str) -> bool:
    parts = urlsplit(url)
    # The user of a web address is often a token; of ssh it is only a name.
    is_token = bool(parts.username) and parts.scheme in ("http", "https", "s3", "gs", "azure", "webdav", "webdavs")
    return parts.password is not None or is_token or without_secrets(f"?{parts.query}") != f"?{parts.query}"


def _report(params: Params, num_new: int) -> Iterator[str]:
    num_files, num_bytes = results_size()
    yield f"The results, {num_files} files with {num_bytes / 1e6:,.1f} MB, are there; {num_new} files were new"
    yield ""
    commands = list(_own_commands(params))
    if commands:
        yield "Commit what belongs to them:"
        yield from (f"  {command}" for command in commands)
    else:
        yield "git has all that belongs to them"
    yield ""
    yield "A colleague types:"
    address = without_secrets(origin()) or "ADDRESS"
    folder = Path(address.rstrip("/").removesuffix(".git").rpartition(":")[2]).name
    yield f"  git clone {quote(address)} && cd {quote(str(Path(folder, place_in_repository())))}"
    yield f"  {colleagues_command(Path.cwd())}"
    yield "  dfkd run    # fetches the results and finds them up to date"


def _own_commands(params: Params) -> Iterator[str]:
    """Yield the commands for what git and the remote do not have yet."""
    needed = list(_needed(params))
    missing = uncommitted([*to_commit(), *needed, *map(_pointer, needed)])
    large = [file for file in needed if str(file) in missing and _is_large(file)]
    if large:
        yield f"dvc add {_words(large)} && dvc push    # too large for git"
    plain = [name for name in missing if Path(name) not in large and not _pointer(Path(name)).exists()]
    added = [name for name in plain if not missing[name]] + [str(_pointer(file)) for file in large]
    if added:
        yield f"git add {_words(added)}"
    if ignored := [name for name in plain if missing[name]]:
        yield f"git add --force {_words(ignored)}    # git ignores them"
    if added or ignored:
        yield "git commit -m 'Results of dfkd'"
    if not origin():
        yield "git remote add origin ADDRESS && git push -u origin HEAD"
    elif added or ignored or unpushed():
        yield "git push"


def _needed(params: Params) -> Iterator[Path]:
    """Yield the files of teachers and students in the project's folder, relative to it."""
    files: list[Path] = []
    for name in params.teachers:
        files += source_files(params.for_teacher(name).teacher.source).values()
    for name in params.students:
        file = factory_file(params.for_student(name).distillation.student)
        files += [file] if file else []
    own = Path.cwd().resolve()
    found = (file.absolute() for file in dict.fromkeys(files))
    yield from (file.relative_to(own) for file in found if file.is_relative_to(own) and ".venv" not in file.parts)


def _pointer(file: Path) -> Path:
    """Return the file that `dvc add` leaves in git for a file."""
    return file.with_name(f"{file.name}.dvc")


def _is_large(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > _LARGE and not _pointer(file).exists()


def _words(names: Iterable[Path | str]) -> str:
    return " ".join(quote(str(name)) for name in names)
