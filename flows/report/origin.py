"""Where a result comes from: times, machine, versions, digests, settings, and the line that repeats it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator
from importlib import metadata

from dfkd_core.common.digests import file_sha256
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.installing import version_text
from dfkd_core.transfer_set.manifest import Manifest
from dfkd_flows.doctor.machine import cpu_model, num_cores
from dfkd_flows.run.lineage import lineage_of
from dfkd_flows.settings.members import DEFAULT, GROUPS
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.settings.teacher_source import as_assignments
from dfkd_flows.stages.names import addresses, label
from dfkd_tasks.dvc_project.status import LOCK, git_commit, results_digest
from dfkd_tasks.records.foreign import without_secrets
from dfkd_tasks.records.timing import described_seconds, stage_seconds
from dfkd_tasks.report.facts import Entry, StageRow

__all__ = ["lineage", "machine", "own_settings", "repeating_command", "stage_rows", "versions"]

_GIB = 2**30
_PACKAGES = ("torch", "torchvision", "numpy", "prefect", "dvc", "mlflow")
# These decide how, and not what, is computed or reported.
_OTHERS = (*GROUPS, "notify", "execution")


def stage_rows(params: Params, manifest: Manifest, predictions: Predictions) -> Iterator[StageRow]:
    """Yield the time of each stage of a student, and the images per second where they are counted.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        manifest: Manifest of its transfer set.
        predictions: Its answers.
    """
    images = {
        "synthesize": manifest.num_images,
        "distill": manifest.num_images * params.distillation.epochs,
        "evaluate": len(predictions.student),
    }
    for address in addresses(params):
        measured = stage_seconds(address)
        number = images.get(address.partition("@")[0])
        rate = f"{number / measured[0]:,.0f}" if measured and measured[0] > 0 and number else ""
        yield StageRow(name=label(address, params), seconds=described_seconds(address), rate=rate)


def machine() -> Iterator[Entry]:
    """Yield the processor, memory, GPUs and system of this machine."""
    import psutil
    import torch

    yield "processor", f"{cpu_model()}, {num_cores():g} cores"
    yield "memory", f"{psutil.virtual_memory().total / _GIB:.1f} GiB"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "GPU", ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "none"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"


def versions() -> Iterator[Entry]:
    """Yield the versions of dfkd, Python and the packages that matter most."""
    yield "dfkd", version_text().partition(",")[0].removeprefix("dfkd ")
    yield "Python", platform.python_version()
    yield from ((name, metadata.version(name)) for name in _PACKAGES)


def lineage(params: Params, manifest: Manifest, predictions: Predictions) -> Iterator[Entry]:
    """Yield the commit and the digests that a result depends on.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        manifest: Manifest of its transfer set.
        predictions: Its answers.
    """
    found = lineage_of(params, manifest, predictions)
    yield "teacher and student", f"{found['teacher']}, {found['student']}"
    yield "git commit", found["git_commit"]
    if LOCK.is_file():
        yield "dvc.lock", file_sha256(LOCK)
        yield "results", results_digest(addresses(params)) or "not in dvc.lock"
    yield "teacher", found["teacher_digest"]
    yield "transfer set", found["transfer_set_sha256"]
    yield "student", found["student_sha256"]
    yield "evaluated images", found["images_sha256"]


def own_settings(params: Params) -> list[Entry]:
    """Return the settings of a result that differ from the defaults, by dotted name.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    return [(name, without_secrets(str(value))) for name, value in _changed(params).items()]


def _changed(params: Params) -> dict[str, object]:
    default = flatten(Params())
    return {
        name: value
        for name, value in flatten(params).items()
        if name.partition(".")[0] not in _OTHERS and value != default.get(name)
    }


def repeating_command(params: Params) -> str:
    """Return the line of a shell that makes a result again in the project's folder.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    commit = git_commit()
    name = "" if params.student_name == DEFAULT else f" {params.student_name}"
    if commit != "unknown" and not commit.endswith("-dirty"):
        return f"git checkout {commit} && dfkd run{name}"
    changes = as_assignments(_changed(params))
    return without_secrets(
        shlex.join(["dfkd", "run", *name.split(), *(w for text in changes for w in ("--set", text))])
    )
