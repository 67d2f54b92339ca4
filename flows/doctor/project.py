"""Checks of params.yaml against the machine: device, disk, data and networks. Nothing is fetched or built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd_core.errors import ConfigError, DataError, DfkdError
from dfkd_core.installing import install_command
from dfkd_flows.doctor.findings import Finding, fault, note, ok
from dfkd_flows.doctor.machine import device_findings, num_cores, parallelism_findings
from dfkd_flows.session.environment import check_writable

if TYPE_CHECKING:
    from dfkd_core.data.datasets import DataConfig
    from dfkd_flows.settings.params import Params

__all__ = [
    "check_data",
    "check_disk",
    "check_execution",
    "check_folder",
    "check_networks",
    "check_notify",
    "check_place",
    "disk_finding",
    "read_params",
]

# The work folder, the project's, DVC's cache and its remote each hold the transfer set.
_COPIES = 4
_MEBIBYTE = 2**20


def read_params(project: Path) -> tuple[Params | None, Finding]:
    """Return the parameters of the current project, None if they have faults, and the finding about them."""
    from dfkd_flows.settings.parsing import PARAMS_FILE, check_complete, load_params

    try:
        params = load_params()
        check_complete()
        return params, ok("project", f"{project}, {PARAMS_FILE} is valid")
    except ConfigError as error:
        return None, fault("project", str(error), f"correct it, or show the changes with: git diff {PARAMS_FILE}")


def check_folder(project: Path) -> Iterator[Finding]:
    """Yield a fault if results cannot be written."""
    try:
        check_writable(project)
    except DfkdError as error:
        yield fault("project", str(error), f"ls -ld {project} {project / '.dfkd'}; df -h {project}")


def check_execution(params: Params) -> Iterator[Finding]:
    """Yield whether the machine fits the section `execution`."""
    yield from device_findings(params.execution.device)
    yield from parallelism_findings(params.execution.num_workers, params.execution.num_threads, num_cores())


def check_notify(params: Params) -> Iterator[Finding]:
    """Yield whether the command and the address of reports are allowed on this machine, if there are any."""
    from dfkd_flows.notify.report import untrusted

    faults = untrusted(params.notify)
    for text in faults.values():
        yield fault("notify", text.partition(". Allow")[0], "dfkd notify --trust")
    if not faults and (params.notify.command or params.notify.webhook):
        yield ok("notify", f"reports {', '.join(params.notify.events)}; try it with: dfkd notify")


def check_disk(params: Params) -> Iterator[Finding]:
    """Yield whether the transfer sets of all teachers fit on the disk."""
    from dfkd_flows.settings.readiness import image_bytes

    sets = [(own.synthesis.num_images, image_bytes(own)) for own in map(params.for_teacher, params.teachers)]
    sizes = [None if size is None else count * size for count, size in sets]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    yield disk_finding(shutil.disk_usage(Path.cwd()).free, sum(count for count, _ in sets), total)


def disk_finding(free: int, num_images: int, once: int | None) -> Finding:
    """Return whether transfer sets fit on the disk.

    Args:
        free: Free bytes.
        num_images: Images in the transfer sets.
        once: Bytes of these images; None if they are unknown before the first run.
    """
    left = f"{free / _MEBIBYTE:,.0f} MiB free"
    if once is None:
        return ok("disk", f"{left}; the size of the transfer set is known after the first run")
    text = f"{left}; {num_images:,} images need {once * _COPIES / _MEBIBYTE:,.0f} MiB in {_COPIES} copies"
    smaller = "free some space, or: dfkd run --set synthesis.num_images=N"
    if free < once:
        return fault("disk", text, smaller)
    return note("disk", text, smaller) if free < _COPIES * once else ok("disk", text)


def check_place(params: Params) -> Iterator[Finding]:
    """Yield what would stop a run at its start, and whether its results can be traced to a commit."""
    from dfkd_flows.settings.readiness import project_faults
    from dfkd_tasks.dvc_project.git_state import commit_command
    from dfkd_tasks.dvc_project.remote import described_remote
    from dfkd_tasks.dvc_project.status import git_commit
    from dfkd_tasks.mlflow_store.addresses import described_store

    found = [finding for area, text in project_faults(params) if (finding := _place_fault(area, text))]
    yield from found
    services = (
        ("dvc", f"files and cache can be read and written, and the remote: {described_remote()}"),
        ("mlflow", f"takes a run: {described_store()}"),
    )
    for area, text in services:
        if area not in {finding.area for finding in found}:
            yield ok(area, text)
    if git_commit() == "unknown":
        text = "there is no commit, so results cannot be traced to their code"
        yield note("git", text, commit_command("Start"))


def _place_fault(area: str, text: str) -> Finding | None:
    # The disk has a finding of its own.
    what, _, remedy = text.rpartition(". ")
    return None if area == "disk" else fault(area, what, remedy)


def check_data(params: Params) -> Iterator[Finding]:
    """Yield whether the images for evaluation and for the training of the teacher exist."""
    teachers = [params.for_teacher(name) for name in params.teachers]
    configs = {config.dataset: config for own in teachers for config in (own.data, own.training_data) if config}
    for config in configs.values():
        yield _data(config)


def _data(config: DataConfig) -> Finding:
    from dfkd_core.data.datasets import NO_DATA, is_built_in
    from dfkd_core.data.published_files import find_files
    from dfkd_core.data.user_images import open_folder

    name, root = config.dataset, Path(config.root)
    kind, _, place = name.partition(":")
    path = Path(place).expanduser()
    if name == NO_DATA:
        return ok("data", "none: the student is judged on synthetic images")
    if name == "digits":
        return ok("data", "digits, which scikit-learn ships")
    if kind == "folder":
        try:
            found = open_folder(path)
        except DataError as error:
            return fault("data", str(error), "dfkd run --set data.dataset=folder:PATH")
        return ok("data", f"{path}: {len(found.labels):,} pictures of {len(found.class_names)} classes")
    if kind == "file":
        if path.is_file():
            return ok("data", f"{path}, {path.stat().st_size / _MEBIBYTE:,.1f} MiB")
        return fault("data", f"no file {path}", "dfkd run --set data.dataset=file:PATH")
    if is_built_in(name):
        folder = find_files(name, root)
        text = f"{name} is not in {root / name}: the next run fetches it, which needs the network"
    else:
        # The layout differs by class of torchvision; dfkd uses one folder per class.
        folder = own if (own := root / place).is_dir() and any(own.iterdir()) else None
        text = f"{name} is not in {own}: unless it is in {root}, the next run fetches it, which needs the network"
    if folder:
        return ok("data", f"{name} in {folder}")
    return note("data", text, "dfkd run (or copy its files there, see docs/data.md)")


def check_networks(params: Params) -> Iterator[Finding]:
    """Yield whether teachers and students can be found."""
    for name in params.teachers:
        yield from _named(_teacher(params.for_teacher(name), len(params.teachers)), name, len(params.teachers))
    for name in params.students:
        change = _change("--student SOURCE", f"students.{name}.distillation.student", len(params.students))
        found = _student(params.for_student(name).distillation.student, change)
        yield from _named([found], name, len(params.students))


def _named(findings: Iterable[Finding], name: str, count: int) -> Iterator[Finding]:
    """Yield findings with the name of the teacher or the student, unless it is the only one."""
    for finding in findings:
        yield replace(finding, text=f"{name}: {finding.text}") if count > 1 else finding


def _change(option: str, path: str, count: int) -> str:
    """Return a command that changes the setting of an option: at its place if there are several to choose from."""
    return f"dfkd run {option}" if count == 1 else f"dfkd run --set {path}={option.partition(' ')[2]}"


def _teacher(params: Params, count: int) -> Iterator[Finding]:
    source, place = params.teacher.source, f"teachers.{params.teacher_name}.teacher.source"
    if source.model:
        yield _network("teacher", source.model, _change("--teacher SOURCE", f"{place}.model", count))
        if source.weights:
            yield from _weights(source.model, source.weights, _change("--weights FILE", f"{place}.weights", count))
    else:
        assert params.training_data
        yield ok("teacher", f"{params.teacher.network}, trained on {params.training_data.dataset}")


def _student(network: str, change: str) -> Finding:
    from dfkd_core.distillation.config import AUTO

    if network == AUTO:
        return ok("student", "auto: the teacher's network with half the widths")
    return _network("student", network, change)


def _network(area: str, name: str, change: str) -> Finding:
    from dfkd_core.models.architectures import TIMM, TORCHVISION, architecture_fault
    from dfkd_core.models.built_in import is_built_in
    from dfkd_core.models.factories import factory
    from dfkd_core.models.storage import CONFIG_FILE
    from dfkd_tasks.mlflow_store.registry import SCHEMES

    path = Path(name)
    if area == "teacher" and name.startswith(SCHEMES):
        return _registered(name)
    if area == "teacher" and (path.is_file() or (path / CONFIG_FILE).is_file()):
        return _file(path, change)
    if wrong := architecture_fault(name):
        return fault(area, wrong + (", or an existing file or folder" if area == "teacher" else ""), change)
    if name.startswith(TIMM) and _missing("timm"):
        return fault(area, f"{name} needs timm, which is not installed", install_command("timm"))
    if not is_built_in(name) and not name.startswith((TIMM, TORCHVISION)):
        try:
            factory(name)
        except DfkdError as error:
            return fault(area, str(error), change)
    return ok(area, name)


def _registered(name: str) -> Finding:
    from dfkd_tasks.caching.workspace import STORE
    from dfkd_tasks.mlflow_store.addresses import is_own_store

    if not is_own_store() or STORE.is_file():
        return ok("teacher", f"{name}, which the next run loads from MLflow")
    text = f"{name} needs MLflow's store, and {STORE} is missing"
    return fault("teacher", text, "export MLFLOW_TRACKING_URI=URI")


def _file(path: Path, change: str) -> Finding:
    if path.suffix == ".safetensors":
        text = f"{path} holds weights and no network: pass the architecture as the teacher and the file as its weights"
        return fault("teacher", text, f"dfkd run --teacher SOURCE --weights {path}")
    missing = _missing("onnx", "onnx2torch") if path.suffix == ".onnx" else []
    if missing:
        return fault("teacher", f"{path} needs {' and '.join(missing)}", install_command("onnx"))
    if not os.access(path, os.R_OK):
        return fault("teacher", f"{path} cannot be read", f"chmod u+r {path} (or: {change})")
    return ok("teacher", str(path))


def _weights(model: str, weights: str, change: str) -> Iterator[Finding]:
    from dfkd_core.models.architectures import TIMM, TORCHVISION

    if Path(weights).is_file():
        return
    if model.startswith((TIMM, TORCHVISION)) and "/" not in weights and "." not in weights:
        text = f"published weights {weights!r} are fetched unless this machine has them, which needs the network"
        yield note("teacher", text, f"dfkd run (offline: {change})")
    else:
        yield fault("teacher", f"no file {weights}", change)


def _missing(*names: str) -> list[str]:
    return [name for name in names if find_spec(name) is None]
