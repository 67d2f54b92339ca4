"""`dfkd doctor`: whether this machine and this project are fit.

Nothing is fetched or started, and nothing but the folder `.dfkd` is written. A check that fails in a way that nobody
thought of is a fault of its own, so that the others still tell what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dfkd_core.errors import ConfigError, DfkdError
from flows.doctor import machine, project, services, versions
from flows.doctor.findings import Finding, Verdict, fault, render
from flows.session.environment import enter_project, prepare_environment

__all__ = ["Finding", "Verdict", "examine", "render"]

_Check = Callable[[], Iterable[Finding]]


def examine(*, debug: bool = False) -> list[Finding]:
    """Look at the machine and, where the current folder lies in a project, enter that and look at it.

    Args:
        debug: Let an unexpected failure of a check through.
    """
    look = partial(_look, debug=debug)
    findings = look("versions", versions.look_at_versions)
    try:
        folder = enter_project()
    except ConfigError as error:
        outside = fault("project", str(error), "cd PROJECT && dfkd doctor")
        return [
            *findings,
            *(look("torch", versions.look_at_torch) or look("machine", machine.look_at_machine)),
            outside,
        ]
    writable = look("project", partial(_prepare, folder))
    checks = {
        "git": services.look_at_git,
        "dvc": services.look_at_dvc,
        "prefect": services.look_at_prefect,
        "telemetry": services.look_at_telemetry,
    }
    with ThreadPoolExecutor() as pool:
        # Waiting for commands and servers passes beside the import of torch.
        pending = [pool.submit(look, area, check) for area, check in checks.items()]
        # Without torch neither the machine nor the parameters can be looked at.
        findings += look("torch", versions.look_at_torch) or [
            *look("versions", versions.look_at_torchvision),
            *look("machine", machine.look_at_machine),
            *look("project", partial(_look_at_project, folder, look)),
            *look("mlflow", services.look_at_mlflow),
        ]
        return [*findings, *writable, *(finding for found in pending for finding in found.result())]


def _prepare(folder: Path) -> Iterable[Finding]:
    try:
        prepare_environment(folder)
    except OSError:
        # The environment is set by then; that nothing can be written is told next.
        pass
    return project.look_at_folder(folder)


def _look_at_project(folder: Path, look: Callable[[str, _Check], list[Finding]]) -> Iterable[Finding]:
    params, finding = project.read_params(folder)
    yield finding
    if params is not None:
        yield from look("execution", partial(project.look_at_execution, params))
        yield from look("data", partial(project.look_at_data, params))
        yield from look("network", partial(project.look_at_networks, params))
        yield from look("disk", partial(project.look_at_disk, params))


def _look(area: str, check: _Check, *, debug: bool) -> list[Finding]:
    """Return what a check finds; what it fails on is a fault after what it found until then."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        if debug:
            raise
        told = isinstance(error, DfkdError)
        text = str(error) if told else f"cannot be looked at: {type(error).__name__}: {error}"
        found.append(fault(area, text, "dfkd doctor --debug"))
    return found
