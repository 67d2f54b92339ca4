"""The process that runs DVC: `python -m dfkd_tasks.dvc_project.program repro|status|push|pull|check|remote [...]`.

Unlike the `dvc` command it ends with its caller, waits for DVC's lock, needs no git, clears what a killed DVC left
behind, and prints DVC's messages whole.
"""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dfkd_tasks.processes.endings import count_oom_kills, ending, means_full_disk, remedy, signal_of
from dfkd_tasks.processes.lifeline import end_with_callers
from dfkd_tasks.records.foreign import is_foreign, reason

__all__ = ["main"]

# What a shell returns if it cannot start a command.
_CANNOT_START = (126, 127)
# Commands whose failure is most likely one of the remote.
_REMOTE = ("push", "pull", "check")
_PROBE = "dfkd-probe"


def main(command: str, *arguments: str) -> int:
    """Run a command of DVC and return its exit code; failures are printed.

    Args:
        command: `repro`, `status`, `push`, `pull`, `check`, which tries to write into a remote, or `remote`, which
            makes one the default.
        *arguments: Of `repro`: stages to make, with those before them; all if none is named. Of `push`: the remote. Of
            `check` and `remote`: its name and its address. Without a name, it is the default one.
    """
    end_with_callers()
    from dvc.exceptions import DvcException
    from dvc.repo import lock_repo
    from scmrepo.exceptions import SCMError

    from dfkd_tasks.caching.code_file import refresh_code_file
    from dfkd_tasks.dvc_project.artifact_list import refresh_artifacts
    from dfkd_tasks.dvc_project.checked_repo import CheckedRepo
    from dfkd_tasks.dvc_project.leftovers import clear_dead_locks, clear_half_runs, set_aside_damaged_lock

    # DVC's own --quiet also hides errors.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        clear_dead_locks()
        _print(set_aside_damaged_lock())
        refresh_artifacts()
        if command == "status":
            # What the stage `code` would write, so that its work counts as done.
            refresh_code_file()
        with CheckedRepo(_wait_for_lock=True, config=_config()) as repo, lock_repo(repo):
            clear_half_runs(Path(repo.stage_cache.cache_dir))
            _COMMANDS[command](repo, *arguments)
    except KeyboardInterrupt:
        return 130
    except _ReportedError:
        return 1
    except (DvcException, SCMError, OSError) as error:
        _print(f"dvc: {reason(error)}" if command == "check" else _failure(command, error))
        return 1
    except Exception as error:
        _print(_unexpected(error, command))
        return 1
    return 0


def _unexpected(error: Exception, command: str) -> str:
    """Return what to print for an error that is caught and that DVC does not know."""
    if means_full_disk(error):
        return f"dvc: the disk is full: {error}. {remedy(OSError(errno.ENOSPC, ''))}"
    if is_foreign(error) and command in _REMOTE:
        return f"dvc: {reason(error)}"
    return f"{traceback.format_exc()}dvc {command} failed, see above. Try it with: dvc {command} --verbose"


def _config() -> dict[str, dict[str, bool]]:
    """Return changes of DVC's configuration: without a git repository it works as a project without one."""
    from dvc.scm import SCM, SCMError

    try:
        SCM(".").close()
    except SCMError:
        return {"core": {"no_scm": True}}
    return {}


def _reproduce(repo: Any, *names: str) -> None:
    """Make stages and those before them. If one fails, its reason is printed, and those that do not need it follow."""
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.repo.reproduce import _reproduce_stage

    def run(stage: Any, **options: Any) -> Any:
        oom_kills = count_oom_kills()
        try:
            return _reproduce_stage(stage, **options)
        except (DvcException, OSError) as error:
            failure = ReproductionError(f"failed to reproduce '{stage.addressing}'")
            failure.__cause__ = error
            if _signal(error) is signal.SIGINT:
                raise KeyboardInterrupt from error
            _print(_failure("repro", failure, oom_kills, _words(stage.addressing, repo)))
            raise
        except Exception as error:
            _print(_unexpected(error, "repro"))
            raise

    try:
        repo.reproduce(targets=names or None, on_error="keep-going", repro_fn=run)
    except ReproductionError:
        raise _ReportedError from None


class _ReportedError(Exception):
    """Stages failed, and the reasons are printed."""


def _words(address: str, repo: Any) -> str:
    """Return the words for a stage: without its name if it is the only one of its kind."""
    kind, _, name = address.partition("@")
    of_kind = [stage for stage in repo.index.stages if stage.addressing.startswith(f"{kind}@")]
    return f"{kind} ({name})" if len(of_kind) > 1 else kind


def _signal(error: BaseException | None) -> signal.Signals | None:
    """Return the signal that ended a stage's command, None if it ended by itself or never ran."""
    from dvc.stage.exceptions import StageCmdFailedError

    return signal_of(_status(error)) if isinstance(error, StageCmdFailedError) else None


def _status(error: BaseException) -> int:
    return int(str(error).rpartition(" ")[2])


def _failure(command: str, error: BaseException, oom_kills: int = 0, stage: str = "") -> str:
    """Return a failure with its causes; nothing for a stage that has printed its own."""
    from dvc.stage.exceptions import StageCmdFailedError

    texts = [str(one) or repr(one) for one in _chain(error)]
    cause = error.__cause__
    if not isinstance(cause, StageCmdFailedError):
        return f"dvc: {': '.join(texts)}. {_next_step(command, list(_chain(error)))}"
    if number := _signal(cause):
        return f"dfkd: {ending(f'The stage {stage}', number, oom_kills)}"
    return f"dvc: {': '.join(texts)}" if _status(cause) in _CANNOT_START else ""


def _next_step(command: str, causes: list[BaseException]) -> str:
    from dvc.dependency.base import DependencyDoesNotExistError

    refused = next((one for one in causes if isinstance(one, OSError)), None)
    if refused:
        return remedy(refused)
    if any(isinstance(one, DependencyDoesNotExistError) for one in causes):
        return "Restore it, or correct dvc.yaml; to see what is missing: git status"
    return f"To see more: dvc {command} --verbose"


def _try_remote(repo: Any, name: str | None = None, url: str = "") -> None:
    """Write an empty file into a remote, by default the default one, and delete it."""
    if name:
        repo.config["remote"].setdefault(name, {})["url"] = url
    remote = repo.cloud.get_remote(name=name, command="push")
    path = remote.fs.join(remote.path, _PROBE)
    remote.fs.makedirs(remote.path)
    with tempfile.NamedTemporaryFile() as file:
        remote.fs.put_file(file.name, path)
    with suppress(Exception):
        # Who may write need not be allowed to delete: then an empty file stays.
        remote.fs.remove(path)


def _set_default_remote(repo: Any, name: str, url: str) -> None:
    with repo.config.edit("repo") as config:
        config["remote"].setdefault(name, {})["url"] = url
        config["core"]["remote"] = name


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def _print(text: str) -> None:
    if text:
        sys.stderr.write(f"{text}\n")


_COMMANDS: dict[str, Callable[..., object]] = {
    "repro": _reproduce,
    "status": lambda repo: sys.stdout.write(json.dumps(repo.status())),
    "push": lambda repo, name=None: sys.stdout.write(f"{repo.push(remote=name, run_cache=True)}\n"),
    "pull": lambda repo: repo.pull(run_cache=True, allow_missing=True),
    "check": _try_remote,
    "remote": _set_default_remote,
}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
