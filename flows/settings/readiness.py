"""Whether this place can take a run: disk, rights, DVC and MLflow. What would fail after hours is found at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dfkd_core.data.datasets import dataset_spec, is_built_in
from dfkd_core.errors import DfkdError
from dfkd_core.models.storage import CONFIG_FILE, read_card
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.workspace import METRICS, REPORTS, STATE, STUDENTS, TEACHERS, WORK, TeacherFiles
from dfkd_tasks.caching.writing import write_fault
from dfkd_tasks.dvc_project.files import file_faults, storage_faults
from dfkd_tasks.dvc_project.remote import check_remote
from dfkd_tasks.mlflow_store.readiness import check_store

__all__ = ["image_bytes", "project_faults"]

_MEBIBYTE = 2**20
_WRITTEN = (Path(), STATE, TEACHERS.parent, TEACHERS, STUDENTS, METRICS, REPORTS)


def project_faults(params: Params) -> Iterator[tuple[str, str]]:
    """Yield what would stop a run in this project: its area in one word, and a sentence with the way out.

    Takes a fraction of a second with the project's own services: nothing is imported or fetched for it. Services of the
    user's are asked, which takes seconds.
    """
    yield from (("project", fault) for fault in _folder_faults())
    yield from (("disk", fault) for fault in _disk_faults(params))
    yield from (("dvc", fault) for fault in (*file_faults(), *storage_faults()))
    experiments = dict.fromkeys(params.for_student(name).registry.experiment for name in params.students)
    checks: list[tuple[str, Callable[[], object]]] = [("dvc", check_remote)]
    checks += [("mlflow", partial(check_store, experiment)) for experiment in experiments]
    for area, check in checks:
        try:
            check()
        except DfkdError as error:
            yield area, str(error)


def _folder_faults() -> Iterator[str]:
    for folder in _WRITTEN:
        if fault := write_fault(folder):
            yield f"Results cannot be written ({fault}). Change its rights: chmod u+rwx {folder.absolute()}"
            return


def _disk_faults(params: Params) -> Iterator[str]:
    needed = [params.for_teacher(name) for name in params.teachers]
    sizes = {own.teacher_name: own.synthesis.num_images * (image_bytes(own) or 0) for own in needed}
    missing = sum(sizes.values()) - _made_bytes()
    free = shutil.disk_usage(Path.cwd()).free
    if free < missing:
        num_images = sum(own.synthesis.num_images for own in needed)
        yield (
            f"{num_images:,} images need {missing / _MEBIBYTE:,.0f} MiB more, and {free / _MEBIBYTE:,.0f} MiB are "
            "free. Free some space, or make fewer: dfkd run --set synthesis.num_images=N"
        )


def _made_bytes() -> int:
    """Return the size of the shards that are made already; some of them may be of other settings."""
    shards = [*TEACHERS.glob("*/transfer_set/*"), *(WORK / "synthesize").rglob("*")]
    return sum(path.stat().st_size for path in shards if path.is_file())


def image_bytes(params: Params) -> int | None:
    """Return the bytes of one image of a transfer set, one per channel of a pixel; None before the first run.

    Args:
        params: Parameters of one teacher, see `Params.for_teacher`.
    """
    training, source = params.training_data, params.teacher.source
    if training:
        known = dataset_spec(training.dataset).in_channels if is_built_in(training.dataset) else 3
        return int((training.channels or known) * training.image_size**2)
    if source.in_channels and source.image_size:
        return int(source.in_channels * source.image_size**2)
    stored = TeacherFiles(params.teacher_name).network
    if (stored / CONFIG_FILE).is_file():
        card = read_card(stored)
        return card.in_channels * card.image_size**2
    return None
