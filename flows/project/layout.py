"""Makes a project in a folder: everything is checked before anything is written, and no file is overwritten.

dvc.yaml is written last and makes the folder a project. What a killed command has written counts as done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd_core.common.digests import write_atomically
from dfkd_core.data.datasets import NO_DATA
from dfkd_core.errors import ConfigError
from dfkd_flows.project.pipeline_text import TEMPLATES, project_pipeline
from dfkd_flows.project.places import check_git, check_place, check_results, is_there
from dfkd_flows.project.wishes import Wishes
from dfkd_flows.session.display import say
from dfkd_flows.session.environment import prepare_environment
from dfkd_flows.settings.checks import check_run
from dfkd_flows.settings.file_text import params_text
from dfkd_flows.settings.overrides import apply_preset
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import PARAMS_FILE, load_params
from dfkd_flows.settings.settling import planned
from dfkd_flows.settings.teacher_source import as_assignments, dataset_change, source_changes
from dfkd_tasks.caching.code_file import CODE_FILE, PIPELINE, code_text
from dfkd_tasks.caching.half_files import clear_half_files
from dfkd_tasks.dvc_project.git_state import repository_of

__all__ = ["make_project"]

_STATE = Path(".dfkd")
_IGNORED = Path(".gitignore")
# Of the templates; these may hold other things of the user, so they stay as they are.
_MAY_EXIST = {
    Path(".dvc/.gitignore"): "dvc_gitignore",
    Path(".dvc/config"): "dvc_config",
    Path(".dvcignore"): "dvcignore",
    Path("prefect.yaml"): "prefect.yaml",
    Path("README.md"): "README.md",
}
# Patterns of .gitignore for folders that may hold other things of the user. DVC then ignores its own results in them.
_SHARED = ("artifacts", "data", "metrics", "reports")


def make_project(folder: Path, wishes: Wishes) -> None:
    """Make a project and change to its folder.

    Args:
        folder: An empty folder, one in a git repository, or one that does not exist yet.
        wishes: The settings; teacher, student and data of the user's own are checked first.

    Raises:
        ConfigError: The folder cannot be a project, or a wish has a fault.
        DfkdError: The teacher, the student or the data is refused. Nothing is left behind.
    """
    check_place(folder)
    with _entered(folder):
        params = _checked(wishes)
        wanted = {CODE_FILE: code_text(), PARAMS_FILE: _params_text(params, wishes), PIPELINE: project_pipeline(params)}
        _refuse_others(wanted)
        check_results()
        check_git((*_MAY_EXIST, *wanted))
        _write(wanted)


@contextmanager
def _entered(folder: Path) -> Iterator[None]:
    """Change to the folder, which is made if it does not exist; undo this if the block fails before it writes files."""
    before, new = Path.cwd(), [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    had_state = (folder / _STATE).exists()
    os.chdir(folder)
    try:
        prepare_environment(folder)
        yield
    except BaseException:
        os.chdir(before)
        if not had_state:
            shutil.rmtree(folder / _STATE, ignore_errors=True)
        with suppress(OSError):
            # Empty ones only.
            for path in new:
                path.rmdir()
        raise


def _checked(wishes: Wishes) -> Params:
    """Return the parameters, after the checks of a run that fetch nothing."""
    if wishes.are_none:
        return Params()
    with planned(wishes.preset, _assignments(wishes), trusted=wishes.trusted, current=Params()) as plan:
        for name, source in plan.sources.items():
            check_run(plan.params.for_teacher(name), source, plan.scratch / name, fetches=False)
        for change in plan.shown():
            say(f"  {change}")
        return plan.params


def _assignments(wishes: Wishes) -> list[str]:
    changes = source_changes(
        here=wishes.here,
        teacher=wishes.teacher,
        weights=wishes.weights,
        student=wishes.student,
        trust_pickle=wishes.trust_pickle,
    )
    if wishes.dataset:
        changes |= dataset_change(wishes.dataset, here=wishes.here)
    elif wishes.teacher and not _names_data(wishes):
        changes["data.dataset"] = NO_DATA
    return [*as_assignments(changes), *wishes.assignments]


def _names_data(wishes: Wishes) -> bool:
    preset = apply_preset(wishes.preset) if wishes.preset else Params()
    named = [assignment.partition("=")[0] for assignment in wishes.assignments]
    return preset.data.dataset != Params().data.dataset or "data" in named or "data.dataset" in named


def _params_text(params: Params, wishes: Wishes) -> str:
    """Return the text of params.yaml; a valid file that is there already is kept if there are no wishes."""
    if wishes.are_none and PARAMS_FILE.is_file():
        load_params()
        return PARAMS_FILE.read_text(encoding="utf-8")
    return params_text(params)


def _refuse_others(wanted: dict[Path, str]) -> None:
    """Refuse to overwrite files that hold something else."""
    others = [str(path) for path, text in wanted.items() if is_there(path) and not _holds(path, text)]
    if others:
        raise ConfigError(
            f"{Path.cwd()} has another {' and '.join(others)}, which `dfkd init` would have to overwrite. Make the "
            "project in a folder of its own: dfkd init FOLDER"
        )


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _write(wanted: dict[Path, str]) -> None:
    made: list[str] = []
    kept: list[str] = []
    clear_half_files()
    starts_git = repository_of(Path.cwd()) is None and _start_git()
    without_git = repository_of(Path.cwd()) is None
    for path, template in _MAY_EXIST.items():
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        if template == "dvc_config" and without_git:
            text = text.replace("[core]\n", "[core]\n    no_scm = true\n")
        (kept if is_there(path) and not _holds(path, text) else made).append(str(path))
        _place(path, text)
    made += _add_ignored()
    for path, text in wanted.items():
        _place(path, text)
    say(f"Made the project {Path.cwd()}: {', '.join([*map(str, wanted), *made])}")
    if kept:
        say(f"Kept as they were: {', '.join(kept)}")
    if starts_git:
        say("Made a git repository there, as the folder was in none")
    if without_git:
        say("git is not installed, so results cannot be traced to a commit")


def _place(path: Path, text: str) -> None:
    if not is_there(path):
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _start_git() -> bool:
    """Make a git repository, and return whether git is installed."""
    if not shutil.which("git"):
        return False
    subprocess.run(["git", "init", "--quiet"], check=True, stdin=subprocess.DEVNULL)
    return True


def _add_ignored() -> Sequence[str]:
    """Add the patterns of what git should ignore that .gitignore lacks; return the file if it has changed."""
    before = _IGNORED.read_bytes() if _IGNORED.exists() else b""
    present = {line.strip() for line in before.decode(errors="replace").splitlines()}
    patterns = (TEMPLATES / "gitignore").read_text(encoding="utf-8").splitlines()
    new = [line for line in patterns if line not in present and not _is_shared(line)]
    if not new:
        return []
    end = b"" if before.endswith(b"\n") or not before else b"\n"
    with write_atomically(_IGNORED.resolve()) as temporary:
        temporary.write_bytes(before + end + "".join(f"{line}\n" for line in new).encode())
    return [str(_IGNORED)]


def _is_shared(pattern: str) -> bool:
    name = pattern.strip("/")
    return name in _SHARED and Path(name).exists()
