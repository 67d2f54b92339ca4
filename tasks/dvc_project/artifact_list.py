"""The section `artifacts` of dvc.yaml: a name for each student and each transfer set, by which others find them.

DVC allows no `foreach` in it, and refuses the whole file if an entry there refers to a key of params.yaml that is gone.
So the entries are written out, and written anew when params.yaml names other teachers or students.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dfkd_core.common.digests import write_atomically
from dfkd_tasks.caching.code_file import PIPELINE
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.dvc_project.yaml_files import parse

__all__ = ["refresh_artifacts", "with_artifacts"]

_PARAMS = Path("params.yaml")
_DEFAULT = "default"
_FIRST = "  # The results that others can fetch. dfkd writes these lines, up to the last one, anew from params.yaml."
_LAST = "  # The last line of the results."
_LINES = re.compile(f"^{re.escape(_FIRST)}$.*?^{re.escape(_LAST)}$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^artifacts:[ \t]*(?:#.*)?$", re.MULTILINE)
# As in params.yaml; others are reported when it is read.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


def refresh_artifacts() -> None:
    """Write the section of the current project's dvc.yaml anew if params.yaml names other teachers or students.

    A file that cannot be read stays as it is; whoever needs it reports why.
    """
    try:
        named = parse(_PARAMS.read_text(encoding="utf-8"))
        students = {str(name): str(value["teacher"]) for name, value in named["students"].items()}
        before = PIPELINE.read_bytes().decode()
        after = with_artifacts(before, teachers=[str(name) for name in named["teachers"]], students=students)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return
    if after != before:
        with write_atomically(PIPELINE.resolve()) as temporary:
            temporary.write_bytes(after.encode())


def with_artifacts(text: str, *, teachers: Collection[str], students: Mapping[str, str]) -> str:
    """Return the text of a dvc.yaml with an entry for each transfer set and each student; all other text stays.

    An entry of the user's keeps its name. A section in another form than one entry per line and key stays as it is.

    Args:
        text: The file's text; entries of earlier names are replaced.
        teachers: Names of the teachers.
        students: The name of each student's teacher.
    """
    end = "\r\n" if "\r\n" in text else "\n"
    plain = text.replace("\r\n", "\n")
    own = _own_entries(plain)
    lines = [_FIRST]
    for name, entry in _entries(teachers, students):
        if name not in own:
            lines += [f"  {name}:", *(f"    {key}: {_yaml(value)}" for key, value in entry.items())]
    new = _placed(plain, "\n".join([*lines, _LAST]))
    return new.replace("\n", end) if _is_whole(new, own) else text


def _entries(teachers: Collection[str], students: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and contents; a name ends in a letter, as DVC wants it."""
    for name, teacher in students.items():
        if _NAME.fullmatch(name):
            yield (
                f"{_prefix(name)}student",
                {
                    "path": StudentFiles(name).network.as_posix(),
                    "type": "model",
                    "desc": "Student, trained without the teacher's training data. Load it with dfkd_core.load_model.",
                    "labels": ["image-classification", "distilled", f"teacher: {teacher}"],
                },
            )
    for name in filter(_NAME.fullmatch, teachers):
        yield (
            f"{_prefix(name)}transfer-set",
            {
                "path": TeacherFiles(name).transfer_set.as_posix(),
                "type": "dataset",
                "desc": "Synthesized images with the teacher's outputs, from which students learn.",
                "labels": ["image-classification", "synthesized", f"teacher: {name}"],
            },
        )


def _prefix(name: str) -> str:
    return "" if name == _DEFAULT else f"{name}-"


def _yaml(value: Any) -> str:
    """Return a value for YAML, which reads names like `on` as something else without quotes."""
    return json.dumps(value) if isinstance(value, list) else str(value)


def _placed(text: str, lines: str) -> str:
    """Return the text with the lines in place of earlier ones, or first in the section, or in a new section."""
    if found := _LINES.search(text):
        return text[: found.start()] + lines + text[found.end() :]
    if found := _SECTION.search(text):
        return f"{text[: found.end()]}\n{lines}{text[found.end() :]}"
    return f"{text.rstrip()}\n\nartifacts:\n{lines}\n"


def _own_entries(text: str) -> dict[str, Any]:
    """Return the user's entries of the section."""
    return dict(parse(_LINES.sub("", text)).get("artifacts") or {})


def _is_whole(text: str, own: Mapping[str, Any]) -> bool:
    """Return whether a new text is valid and still has all entries of the user's."""
    try:
        return bool(own.items() <= parse(text)["artifacts"].items())
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return False
