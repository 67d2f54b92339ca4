"""The text of dvc.yaml, for a checkout and for a project whose code is an installed package.

Print the checkout's into the file with `python -m dfkd_flows.project.pipeline_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.code_file import CODE_FILE, CODE_STAGE, PIPELINE
from dfkd_tasks.dvc_project.artifact_list import with_artifacts

__all__ = ["TEMPLATES", "checkout_pipeline", "project_pipeline"]

TEMPLATES = Path(__file__).parent / "templates"
"""Folder with the texts of a project's files."""

# PATH comes first: the command that a run was started with is in front of it, see `prepare_environment`.
_HEAD = f"""\
# Stages of the pipeline. DVC cannot see changes of an installed package, so the stage `{CODE_STAGE}` runs each time and
# writes a digest of each stage's code into {CODE_FILE}, on which the stage depends. Commit {CODE_FILE} with dvc.lock.
vars:
  # Finds the command also where the virtual environment is not activated.
  - dfkd: PATH="$PATH:$PWD/.venv/bin" dfkd

stages:
  {CODE_STAGE}:
    desc: Digests of the code of the installed package.
    cmd: ${{dfkd}} stage {CODE_STAGE}
    always_changed: true
    outs:
      - {CODE_FILE}:
          cache: false
          persist: true

"""
_STAGE = re.compile(r"  (\w+):")
_CODE = re.compile(r" +- (dfkd_core|tasks)/.+")
_DEPS = re.compile(r"( +)deps:")
_PARAMS = re.compile(r"( +params: \[.+)\]")


def checkout_pipeline() -> str:
    """Return the text for a checkout, whose stages depend on the folders of the code."""
    return _with_artifacts(_template(), Params())


def project_pipeline(params: Params) -> str:
    """Return the text for a project without code of its own: the same stages, which depend on code.json."""
    _, _, stages = _template().partition("\nstages:\n")
    lines = [line for line in stages.splitlines() if not _CODE.fullmatch(line)]
    return _with_artifacts(_HEAD + "\n".join(_with_digests(lines)) + "\n", params)


def _template() -> str:
    return (TEMPLATES / "pipeline.yaml").read_text(encoding="utf-8")


def _with_artifacts(text: str, params: Params) -> str:
    students = {name: params.teacher_of(name) for name in params.students}
    return with_artifacts(text, teachers=params.teachers, students=students)


def _with_digests(lines: list[str]) -> Iterator[str]:
    """Yield the lines of stages, without empty `deps`, and with the digest of each stage among its `params`."""
    stage = ""
    for line, after in zip(lines, [*lines[1:], ""]):
        if found := _STAGE.fullmatch(line):
            stage = found[1]
        if (found := _DEPS.fullmatch(line)) and not after.startswith(f"{found[1]}  - "):
            continue
        yield _PARAMS.sub(rf"\1, {{{CODE_FILE}: [{stage}]}}]", line)


if __name__ == "__main__":
    PIPELINE.write_text(checkout_pipeline(), encoding="utf-8")
