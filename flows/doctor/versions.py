"""Installed packages: their versions, whether `pip check` accepts them, and whether torch and torchvision import."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from dfkd_core.installing import install_command, install_packages_command
from dfkd_flows.doctor.findings import Finding, fault, note, ok

__all__ = ["check_packages", "check_torch", "check_versions", "package_findings"]

_PROJECT = "dfkd"
_SHOWN = ("torch", "torchvision", "numpy", "safetensors", "prefect", "fastapi", "dvc", "mlflow")
_SECONDS = 60


def check_versions() -> Iterator[Finding]:
    """Yield the versions of Python and of the main packages."""
    own = _version(_PROJECT)
    shown = [f"{name} {version}" for name in _SHOWN if (version := _version(name))]
    yield ok("versions", ", ".join([*([f"{_PROJECT} {own}"] if own else []), f"Python {_python()}", *shown]))
    if not own:
        text = f"{_PROJECT} is not installed, so pip does not check the versions that it needs"
        yield note("versions", text, install_command("pipeline"))


def check_packages() -> Iterator[Finding]:
    """Yield the conflicts between installed packages that `pip check` reports."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    checked = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=_SECONDS
    )
    yield from package_findings(checked.returncode, checked.stdout, checked.stderr)


def package_findings(code: int, output: str, errors: str) -> Iterator[Finding]:
    """Yield what `pip check` reported: a fault for each package that dfkd needs, a note for each other conflict.

    Args:
        code: Exit code of pip.
        output: Its standard output, one conflict a line.
        errors: Its standard error.
    """
    lines = output.strip().splitlines()
    if code == 0:
        yield ok("packages", "pip check: no conflicts")
    elif not lines:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        yield note("packages", f"pip check fails: {last}", f"{sys.executable} -m ensurepip")
    for line in lines if code else ():
        finding = fault if line.startswith(f"{_PROJECT} ") else note
        yield finding("packages", line, _repair(line))


def check_torch() -> Iterator[Finding]:
    """Yield a fault if torch cannot be imported, alone or with torchvision."""
    for name, module in (("torch", "torch"), ("torchvision", "dfkd_core.common.vision")):
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            again = f"{install_packages_command('torch', 'torchvision')} --force-reinstall"
            yield fault("torch", f"{name} cannot be imported: {error}", again)
            return


def _repair(conflict: str) -> str:
    """Return the command that ends a conflict, from pip's line, which names a package and the versions that fit."""
    needed = re.search(r"(?:requires|has requirement) (.+?), (?:which is|but you have)", conflict)
    return install_packages_command(needed[1] if needed else "PACKAGE")


def _python() -> str:
    return platform.python_version()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
