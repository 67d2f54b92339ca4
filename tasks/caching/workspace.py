"""Paths in a project, and the small references to files that tasks pass instead of tensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfkd_core.common.digests import file_sha256, json_digest, write_atomically
from dfkd_core.errors import ConfigError
from dfkd_tasks.caching.code import code_digest

__all__ = [
    "DISAGREEMENTS_FILE",
    "METRICS",
    "PREDICTIONS_FILE",
    "PROJECT_REPORT",
    "REAL_AXES_FILE",
    "REPORTS",
    "SAMPLES_FILE",
    "STATE",
    "STORE",
    "STUDENTS",
    "SUMMARY_FILE",
    "TEACHERS",
    "WORK",
    "Artifact",
    "StudentFiles",
    "TeacherFiles",
    "clear_folder",
    "is_intact",
    "place_file",
    "place_folder",
    "reference",
    "work_folder",
]

TEACHERS = Path("artifacts/teachers")
"""Folder with one folder per teacher."""
STUDENTS = Path("artifacts/students")
"""Folder with one folder per student."""
PREDICTIONS_FILE = "predictions.safetensors"
"""Predicted classes of teacher and student on the evaluated images, and how sure they are."""
DISAGREEMENTS_FILE = "disagreements.safetensors"
"""The evaluated images on which they differ most."""
REAL_AXES_FILE = "real_axes.safetensors"
"""Features of labelled images on the first two axes of their model."""
SAMPLES_FILE = "samples.png"
"""Picture of some images of a transfer set."""
SUMMARY_FILE = "transfer_set.safetensors"
"""Facts about a transfer set, see `SetSummary`."""
METRICS = Path("metrics")
"""Folder with one file of figures per student."""
REPORTS = Path("reports")
"""Folder of tables and pictures."""
PROJECT_REPORT = REPORTS / "report.html"
"""Page of the project."""
STATE = Path(".dfkd")
WORK = STATE / "work"
STORE = Path("mlflow.db")

_KEPT_WORK_FOLDERS = 3


@dataclass(frozen=True, slots=True)
class TeacherFiles:
    """Where the results of one teacher are, which all its students share."""

    name: str

    @property
    def network(self) -> Path:
        """The stored teacher, a folder."""
        return TEACHERS / self.name / "network"

    @property
    def statistics(self) -> Path:
        """The statistics of its features, a folder."""
        return TEACHERS / self.name / "statistics"

    @property
    def transfer_set(self) -> Path:
        """The images that it has labelled, a folder."""
        return TEACHERS / self.name / "transfer_set"

    @property
    def reports(self) -> Path:
        """Folder of its tables and pictures."""
        return REPORTS / "teachers" / self.name

    @property
    def summary(self) -> Path:
        """Facts about the transfer set for people, a file, see `SetSummary`."""
        return self.reports / SUMMARY_FILE

    @property
    def samples(self) -> Path:
        """Picture of some of its images."""
        return self.reports / SAMPLES_FILE


@dataclass(frozen=True, slots=True)
class StudentFiles:
    """Where the results of one student are."""

    name: str

    @property
    def network(self) -> Path:
        """The stored student, a folder."""
        return STUDENTS / self.name

    @property
    def metrics(self) -> Path:
        """Its figures, a JSON file."""
        return METRICS / f"{self.name}.json"

    @property
    def reports(self) -> Path:
        """Folder of its tables and pictures."""
        return REPORTS / "students" / self.name

    @property
    def predictions(self) -> Path:
        """The predicted classes of the evaluated images, a file."""
        return self.reports / PREDICTIONS_FILE

    @property
    def disagreements(self) -> Path:
        """The evaluated images on which it differs most from its teacher, a file."""
        return self.reports / DISAGREEMENTS_FILE

    @property
    def real_axes(self) -> Path:
        """The teacher's features of labelled images on two axes, a file."""
        return self.reports / REAL_AXES_FILE

    @property
    def report(self) -> Path:
        """Its page, a file."""
        return self.reports / "report.html"

    @property
    def notes(self) -> Path:
        """Folder of what is known about its last run: latency, times and publication."""
        return STATE / "students" / self.name

    @property
    def latency(self) -> Path:
        """Its latency and its teacher's, a JSON file."""
        return self.notes / "latency.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A small reference to a file or a folder, equal for equal bytes, that can be part of a cache key."""

    path: str
    """Path relative to the project."""
    sha256: str
    """SHA-256 of the file, or over the names and digests of the folder's files."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Figures for the caller."""


def reference(path: Path, numbers: Mapping[str, float] | None = None) -> Artifact:
    """Hash a file or folder and return a reference to it."""
    return Artifact(path=path.as_posix(), sha256=_sha256(path), numbers=dict(numbers or {}))


def is_intact(artifact: Artifact) -> bool:
    """Return whether the file or folder still exists with the same bytes."""
    path = Path(artifact.path)
    return path.exists() and _sha256(path) == artifact.sha256


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    return json_digest({item.relative_to(path).as_posix(): file_sha256(item) for item in files})


def work_folder(stage: str, inputs: Mapping[str, Any]) -> Path:
    """Return the folder for a stage's work in progress, addressed by its inputs and its code.

    It is outside of the stage's outs, which DVC deletes before the stage runs. Older folders of the stage are deleted,
    except the last three for each teacher and student in the project.
    """
    folder = WORK / stage / json_digest({"inputs": inputs, "code": code_digest(stage)})[:24]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    others = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[_KEPT_WORK_FOLDERS * _num_names() :]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _num_names() -> int:
    """Return how many teachers or students have results, whichever are more; at least 1."""
    return max(1, *(sum(1 for _ in folder.glob("*/")) for folder in (TEACHERS, STUDENTS)))


def clear_folder(folder: Path) -> Path:
    """Create `folder`, or delete its content, and return it.

    Raises:
        ConfigError: It is a link, whose target can be somebody else's folder, or a file.
    """
    if folder.is_symlink() or folder.is_file():
        raise ConfigError(f"{folder} must be a folder and is a link or a file. Move it, and run the same command again")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def place_file(source: Path, target: Path) -> None:
    """Copy a file to `target`, whole or not at all."""
    with write_atomically(target) as temporary:
        shutil.copyfile(source, temporary)


def place_folder(source: Path, target: Path) -> None:
    """Replace the content of `target` by the files of a flat folder."""
    clear_folder(target)
    for item in sorted(source.iterdir()):
        place_file(item, target / item.name)
