"""Installed packages against the ranges that dfkd declares."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import platform
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.doctor.findings import Finding, fault, note, ok
from tasks.caching.code import ROOT

__all__ = [
    "Declared",
    "find_extra_faults",
    "find_faults",
    "look_at_torch",
    "look_at_torchvision",
    "look_at_versions",
    "read_declared",
    "torchvision_findings",
]

_AREA = "versions"
_SHOWN = ("torch", "torchvision", "numpy", "safetensors", "prefect", "fastapi", "dvc", "mlflow")
_EXTRAS = {"timm": "networks of timm", "onnx": "ONNX teachers and export", "int8": "int8 export"}
_PROJECT = "dfkd"


@dataclass(frozen=True, slots=True)
class Declared:
    """What dfkd needs."""

    version: str
    """dfkd's own."""
    python: str
    """Range of Python's version."""
    needed: tuple[Requirement, ...]
    extras: Mapping[str, tuple[Requirement, ...]]
    """Packages by the extra that needs them."""


def look_at_versions() -> Iterator[Finding]:
    """Yield what is to be said of Python and the packages."""
    beside, installed_with = read_declared(ROOT), _read_metadata()
    declared = beside or installed_with
    if declared is None:
        yield fault(_AREA, f"{_PROJECT} is not installed, so that its packages are not known", "pip install dfkd")
        return
    found = {name: _version(name) for name in [*_SHOWN, *(each.name for each in declared.needed)]}
    faults = list(find_faults(declared, found, python=platform.python_version()))
    shown = ", ".join(f"{name} {found[name]}" for name in _SHOWN if found[name])
    own = f"{_PROJECT} {declared.version}, Python {platform.python_version()}, {shown}"
    yield ok(_AREA, own if faults else f"{own}: all in their ranges")
    yield from faults
    yield from find_extra_faults(declared, {each.name: _version(each.name) for each in _extra_packages(declared)})
    if beside and installed_with and _ranges(beside) != _ranges(installed_with):
        text = f"{_PROJECT} was installed from another pyproject.toml than that in {ROOT}; pip knows the older ranges"
        yield note(_AREA, text, f"pip install --no-deps --editable {ROOT}")


def look_at_torch() -> Iterator[Finding]:
    """Yield a fault if torch cannot be imported, whatever its version."""
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield fault("torch", f"cannot be imported: {error}", "pip install --force-reinstall torch")


def look_at_torchvision() -> Iterator[Finding]:
    """Yield what is to be said of torchvision beside the torch that is installed."""
    torch, torchvision = _version("torch"), _version("torchvision")
    if torch and torchvision:
        needed = _parse(metadata.requires("torchvision") or ())
        pin = next((each.specifier for each in needed if each.name == "torch"), SpecifierSet())
        yield from torchvision_findings(torch, torchvision, pin, loads=_operators_load())


def find_faults(declared: Declared, found: Mapping[str, str | None], *, python: str) -> Iterator[Finding]:
    """Yield a fault for each package that is missing or out of its range.

    Args:
        declared: The ranges.
        found: Version of each package, None where it is missing.
        python: Version of Python.
    """
    if not SpecifierSet(declared.python).contains(python, prereleases=True):
        yield fault(_AREA, f"Python is {python}, outside of {declared.python}", "make setup PYTHON=python3.11")
    for each in declared.needed:
        yield from _range_fault(each, found.get(each.name))


def find_extra_faults(declared: Declared, found: Mapping[str, str | None]) -> Iterator[Finding]:
    """Yield which extras are there, which are not, and a fault for each of their packages that is out of its range."""
    complete = []
    for extra, use in _EXTRAS.items():
        needed = declared.extras.get(extra, ())
        missing = [each.name for each in needed if not found.get(each.name)]
        if missing:
            text = f"{extra} ({use}) is not installed: without {', '.join(missing)}"
            yield note("extras", text, f"pip install '{_PROJECT}[{extra}]'")
        elif needed:
            complete += [f"{each.name} {found[each.name]}" for each in needed]
        for each in needed:
            if found.get(each.name):
                yield from _range_fault(each, found[each.name])
    if complete:
        yield ok("extras", ", ".join(complete))


def torchvision_findings(torch: str, torchvision: str, pin: SpecifierSet, *, loads: bool) -> Iterator[Finding]:
    """Yield what is to be said of torchvision beside torch, see `dfkd_core.common.vision`.

    Args:
        torch: Version of torch.
        torchvision: Version of torchvision.
        pin: Versions of torch that torchvision is built for.
        loads: Whether its compiled operators can be loaded.
    """
    if not pin.contains(torch, prereleases=True):
        text = f"torchvision {torchvision} is built for torch {pin}, and this is torch {torch}"
        yield note(_AREA, text, f"pip install 'torch{pin}'")
    elif not loads:
        text = f"torchvision's compiled operators do not load beside torch {torch}, which dfkd works without"
        yield ok(_AREA, text)


def read_declared(folder: Path) -> Declared | None:
    """Return what the pyproject.toml in a folder declares, None where there is none of dfkd's."""
    path = folder / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    if project.get("name") != _PROJECT:
        return None
    return Declared(
        version=project["version"],
        python=project["requires-python"],
        needed=_parse(project["dependencies"]),
        extras={name: _parse(texts) for name, texts in project["optional-dependencies"].items()},
    )


def _read_metadata() -> Declared | None:
    try:
        about = metadata.metadata(_PROJECT)
    except metadata.PackageNotFoundError:
        return None
    every = _parse(metadata.requires(_PROJECT) or ())

    def of(extra: str) -> tuple[Requirement, ...]:
        return tuple(each for each in every if each.marker and each.marker.evaluate({"extra": extra}))

    return Declared(
        version=about["Version"],
        python=about["Requires-Python"],
        needed=tuple(each for each in every if not each.marker),
        extras={name: of(name) for name in about.get_all("Provides-Extra") or ()},
    )


def _parse(texts: Sequence[str]) -> tuple[Requirement, ...]:
    return tuple(Requirement(text) for text in texts)


def _extra_packages(declared: Declared) -> Iterator[Requirement]:
    return (each for extra in _EXTRAS for each in declared.extras.get(extra, ()))


def _ranges(declared: Declared) -> set[tuple[str, str, SpecifierSet]]:
    everything = {"": declared.needed, **declared.extras}
    return {(extra, each.name, each.specifier) for extra, needed in everything.items() for each in needed}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _range_fault(needed: Requirement, found: str | None) -> Iterator[Finding]:
    if found is None:
        text = f"{needed.name} is missing; needed is {needed.specifier}"
    elif not needed.specifier.contains(found, prereleases=True):
        text = f"{needed.name} {found} is outside of {needed.specifier}"
    else:
        return
    yield fault(_AREA, text, f"pip install '{needed.name}{needed.specifier}'")


def _operators_load() -> bool:
    """Tell whether torchvision's compiled operators can be loaded, without the seconds that its import takes."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            library = Path(folder, f"_C{suffix}")
            if library.is_file():
                try:
                    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                except OSError:
                    return False
                return True
    return False
