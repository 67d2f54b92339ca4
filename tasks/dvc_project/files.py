"""The files that DVC needs in a project: their faults as sentences, found without starting DVC."""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code import ENTRY_MODULES
from dfkd_tasks.caching.code_file import PIPELINE
from dfkd_tasks.caching.writing import write_fault
from dfkd_tasks.dvc_project.status import LOCK

__all__ = [
    "committed_remotes",
    "committed_secrets",
    "config_elsewhere",
    "default_remote",
    "file_faults",
    "folder_of",
    "is_folder",
    "is_in_project",
    "merge_marker",
    "storage_faults",
]

_DVC = Path(".dvc")
_CONFIGS = (_DVC / "config", _DVC / "config.local")
# A search uses the pipeline and is no part of it.
_NO_STAGE = "tune"
_MARKERS = ("<<<<<<< ", ">>>>>>> ")
_REMOTE = re.compile(r"'remote \"(.+)\"'")
_SECRETS = (
    "access_key_id", "account_key", "client_secret", "connection_string", "gdrive_client_secret", "oss_key_id",
    "oss_key_secret", "passphrase", "password", "sas_token", "secret_access_key", "session_token", "sse_customer_key",
    "token",
)  # fmt: skip
"""Options of DVC's remotes that hold credentials."""


def merge_marker(text: str) -> int:
    """Return the number of the first line with a merge marker of git, from 1; 0 if there is none."""
    lines = enumerate(text.splitlines(), start=1)
    return next((number for number, line in lines if line.startswith(_MARKERS)), 0)


def file_faults() -> Iterator[str]:
    """Yield what is wrong with dvc.yaml and dvc.lock, each with the way out; a damaged dvc.lock is made again."""
    if fault := _pipeline_fault():
        yield f"{fault}. Correct it, or restore it with: git checkout {PIPELINE}"
    if LOCK.exists() and not LOCK.is_file():
        yield f"{LOCK} is not a file. Move it away with: mv {LOCK} {LOCK}.old"


def _pipeline_fault() -> str:
    """Return why dvc.yaml is no YAML with stages, empty if it is."""
    try:
        text = PIPELINE.read_text(encoding="utf-8")
        if line := merge_marker(text):
            return f"{PIPELINE}, line {line}: there are merge markers of git"
        content = yaml.safe_load(text)
    except FileNotFoundError:
        return f"{PIPELINE} is missing"
    except OSError as error:
        return f"{PIPELINE} cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        return f"{PIPELINE} is not UTF-8 text: byte {error.start} cannot be read"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        return f"{PIPELINE}, line {line}, is not YAML: {error.problem}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"{PIPELINE} is not YAML: {' '.join(str(error).split())}"
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not stages:
        return f"{PIPELINE} has no stages"
    missing = [name for name in ENTRY_MODULES if name not in stages and name != _NO_STAGE]
    return f"{PIPELINE} has no stage {' and no stage '.join(missing)}" if missing else ""


def storage_faults() -> Iterator[str]:
    """Yield what is wrong with DVC's cache and its default remote, each with the way out; no other host is asked."""
    try:
        config = _config()
    except configparser.Error as error:
        yield f"{' or '.join(map(str, _CONFIGS))} cannot be read: {' '.join(str(error).split())}. Correct it"
        return
    cache = _placed(config.get("cache", "dir", fallback="cache"))
    if fault := write_fault(cache):
        yield f"DVC's cache {cache} cannot be written ({fault}). Change its rights, or move it: dvc cache dir PATH"
    name, url = _remote(config)
    if name:
        yield from _remote_faults(name, url)
    elif _DVC.is_dir():
        yield "DVC has no default remote to copy results to. Set one with: dvc remote add --default local ../.dvc-store"


def default_remote() -> tuple[str, str]:
    """Return the name and the address of DVC's default remote; both are empty if there is none."""
    try:
        return _remote(_config())
    except configparser.Error:
        return "", ""


def config_elsewhere() -> str:
    """Return DVC's configuration for a copy of the project: with absolute paths, and without git.

    Raises:
        DfkdError: It is damaged.
    """
    try:
        config = _config()
    except configparser.Error:
        raise DfkdError("\n".join(storage_faults())) from None
    for section, settings in {"core": {"no_scm": "true"}, "cache": {}}.items():
        if not config.has_section(section):
            config.add_section(section)
        config[section].update(settings)
    config["cache"]["dir"] = str(_placed(config.get("cache", "dir", fallback="cache")))
    for section in config.sections():
        url = config.get(section, "url", fallback="")
        if url and not urlsplit(url).scheme:
            config[section]["url"] = str(_placed(url))
    text = io.StringIO()
    config.write(text)
    return text.getvalue()


def is_folder(url: str) -> bool:
    """Return whether the address of a remote is a folder that this machine sees."""
    return urlsplit(url).scheme in ("", "file")


def folder_of(url: str) -> Path:
    """Return the absolute folder of a remote, see `is_folder`; a relative one is relative to DVC's configuration."""
    return _placed(url2pathname(urlsplit(url).path) if url.startswith("file:") else url)


def is_in_project(url: str) -> bool:
    """Return whether the address of a remote is a folder of the current project, of which each clone has its own."""
    return is_folder(url) and folder_of(url).is_relative_to(Path.cwd().resolve())


def committed_remotes() -> tuple[str, dict[str, str]]:
    """Return what a clone gets of DVC's remotes: the name of the default one, and the addresses by name.

    Raises:
        configparser.Error: The file is damaged; `storage_faults` yields it as a sentence.
    """
    config = _parsed(_CONFIGS[:1])
    remotes = {found[1]: config.get(name, "url", fallback="") for name in config if (found := _REMOTE.fullmatch(name))}
    return config.get("core", "remote", fallback=""), remotes


def committed_secrets() -> list[tuple[str, str]]:
    """Return the credentials that git would publish: the name of a remote and of its option.

    Raises:
        configparser.Error: As `committed_remotes`.
    """
    config = _parsed(_CONFIGS[:1])
    remotes = {name: found[1] for name in config if (found := _REMOTE.fullmatch(name))}
    return [(remote, option) for name, remote in remotes.items() for option in config[name] if option in _SECRETS]


def _remote(config: configparser.RawConfigParser) -> tuple[str, str]:
    name = config.get("core", "remote", fallback="")
    return name, config.get(_section(name), "url", fallback="")


def _remote_faults(name: str, url: str) -> Iterator[str]:
    if not url:
        yield f"DVC's default remote {name!r} has no address in {_CONFIGS[0]}. Set it with: dvc remote add {name} PATH"
    elif is_folder(url):
        place = folder_of(url)
        if fault := write_fault(place):
            yield (
                f"DVC's remote {name!r} at {place} cannot be written ({fault}). Change its rights, or set another "
                f"with: dvc remote modify {name} url PATH"
            )


def _config() -> configparser.RawConfigParser:
    config = _parsed(_CONFIGS)
    if config.has_section(_section(config.get("core", "remote", fallback=""))) or not _DVC.is_dir():
        return config
    # The remote may be set for the user or the machine. Their folders are found by an import that takes time.
    from dvc.dirs import global_config_dir, system_config_dir

    return _parsed([Path(system_config_dir(), "config"), Path(global_config_dir(), "config"), *_CONFIGS])


def _parsed(paths: Iterable[Path]) -> configparser.RawConfigParser:
    config = configparser.RawConfigParser(strict=False, allow_no_value=True)
    config.read(paths, encoding="utf-8")
    return config


def _section(remote: str) -> str:
    return f"'remote \"{remote}\"'"


def _placed(text: str) -> Path:
    """Return a path of DVC's configuration, which is relative to the configuration's folder."""
    return (_DVC / Path(text).expanduser()).resolve()
