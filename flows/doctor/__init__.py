"""`dfkd doctor`: whether this machine and this project are ready for a run.

It checks only what DVC, MLflow and Prefect do not report at their first command. Nothing is fetched or started, and
nothing but the folder `.dfkd` is written: what is tried in MLflow's store and in a remote is undone. An MLflow server
of the user's gets the experiment if it has none of this name. A check that fails unexpectedly is a fault, and the other
checks still run.

Imports: dfkd_flows.session, dfkd_flows.settings, dfkd_tasks, dfkd_core. Begin with `findings`
(the outcome of a check); one file per area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.doctor import machine, project, services, versions
from dfkd_flows.doctor.findings import Finding, Verdict, fault, note, render
from dfkd_flows.session.environment import enter_project, incomplete_project, prepare_environment

__all__ = ["Finding", "Verdict", "examine", "render"]

_Check = Callable[[], Iterable[Finding]]
_Run = Callable[[str, _Check], list[Finding]]


def examine(*, debug: bool = False) -> list[Finding]:
    """Check the machine and, if the current folder is in a project, enter it and check it.

    Args:
        debug: Raise an unexpected failure of a check instead of reporting it.
    """
    run = partial(_run, debug=debug)
    with ThreadPoolExecutor() as pool:
        # pip takes seconds, during which torch is imported.
        conflicts = pool.submit(run, "packages", versions.check_packages)
        installed, others = run("versions", versions.check_versions), _examine_folder(run)
        return [*installed, *conflicts.result(), *others]


def _examine_folder(run: _Run) -> list[Finding]:
    try:
        folder = enter_project()
    except ConfigError as error:
        found = run("torch", versions.check_torch) or run("machine", machine.check_machine)
        return [*found, _outside(error), *run("prefect", services.check_prefect)]
    writable = run("project", partial(_prepare, folder))
    # Neither the machine nor the parameters can be checked without torch.
    found = run("torch", versions.check_torch) or [
        *run("machine", machine.check_machine),
        *run("project", partial(_check_project, folder, run)),
    ]
    prefect, telemetry = run("prefect", services.check_prefect), run("telemetry", services.check_telemetry)
    background = run("services", services.check_background)
    return [*found, *writable, *prefect, *background, *telemetry]


def _outside(error: ConfigError) -> Finding:
    what, _, remedy = str(error).partition(". ")
    return fault("project", what, remedy) if incomplete_project(Path.cwd()) else note("project", what, "dfkd init")


def _prepare(folder: Path) -> Iterable[Finding]:
    try:
        prepare_environment(folder)
    except OSError:
        # The environment is set before the folder is made; the next check reports that it cannot be written.
        pass
    return project.check_folder(folder)


def _check_project(folder: Path, run: _Run) -> Iterable[Finding]:
    params, finding = project.read_params(folder)
    yield finding
    if params is not None:
        yield from run("execution", partial(project.check_execution, params))
        yield from run("data", partial(project.check_data, params))
        yield from run("network", partial(project.check_networks, params))
        yield from run("disk", partial(project.check_disk, params))
        yield from run("project", partial(project.check_place, params))
        yield from run("notify", partial(project.check_notify, params))


def _run(area: str, check: _Check, *, debug: bool) -> list[Finding]:
    """Return the findings of a check; if it fails, a fault follows those that it had yielded."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, DfkdError)
        text = str(error) if expected else f"cannot be checked: {type(error).__name__}: {error}"
        found.append(fault(area, text, "dfkd doctor --debug"))
    return found
