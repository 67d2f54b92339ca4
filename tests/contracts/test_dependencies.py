"""What the code imports is declared in pyproject.toml: in the base, in the extra of the command, or in an own extra."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dfkd_tasks.caching.code import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The module that needs torchao is imported when it is used.
IMPORTED_LATE = {"dfkd_core/export/quantisation.py"}
# A CUDA build of torch needs these, a CPU build does not.
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
_OWN = {"dfkd_core", "dfkd_tasks", "dfkd_flows"}

BLOCKED_IMPORT = """
import sys
allowed = set(sys.argv[1].split(","))
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
import dfkd_core
for name in dir(dfkd_core):
    getattr(dfkd_core, name)
"""


def names_of(requirements: list[str]) -> set[str]:
    """Return the names of packages in requirements, with those of the extras of dfkd that they name."""
    parsed = [Requirement(text) for text in requirements]
    nested = [text for each in parsed if each.name == "dfkd" for extra in each.extras for text in EXTRAS[extra]]
    own = {canonicalize_name(each.name) for each in parsed if each.name != "dfkd"}
    return own | (names_of(nested) if nested else set())


def with_their_needs(names: set[str]) -> set[str]:
    """Return packages with all that they need on this machine, as far as it is installed."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}{sorted(requirement.extras)}"
        if key in found:
            continue
        found |= {key, name}
        for text in needs_of(name):
            need = Requirement(text)
            extras = {"", *requirement.extras}
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(need)
    return {name for name in found if not name.endswith("]")}


def needs_of(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def modules_of(names: set[str]) -> set[str]:
    """Return the top-level modules of packages."""
    return {top for top, owners in all_modules().items() if {canonicalize_name(owner) for owner in owners} & names}


@functools.cache
def all_modules() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def undeclared(found: Iterable[tuple[str, str]], names: set[str]) -> list[tuple[str, str]]:
    """Return the imports that are of none of the packages."""
    modules = modules_of(names)
    return [each for each in found if each[1] not in modules]


def imports(package: str, *, at_once: bool) -> Iterator[tuple[str, str]]:
    """Yield file and top-level module of each import of another package, `at_once` only those of whole modules."""
    for path in sorted((PACKAGES / package).rglob("*.py")):
        for node in within(ast.parse(path.read_text()), at_once=at_once):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in {module.partition(".")[0] for module in imported} - set(sys.stdlib_module_names) - _OWN:
                yield path.relative_to(PACKAGES).as_posix(), name


def within(node: ast.AST, *, at_once: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        late = isinstance(child, ast.FunctionDef) or (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        )
        if not (at_once and late):
            yield from within(child, at_once=at_once)


def locked(name: str) -> dict[str, str]:
    """Return the versions in a lock file by the names of the packages."""
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith(("#", "-r "))]
    return {canonicalize_name(package): version for package, version in pairs}


def test_core__imports_the_packages_of_the_base_at_once_and_those_of_its_extras_late() -> None:
    base = names_of(PROJECT["dependencies"])
    optional = names_of([text for extra in ("int8", "onnx", "parquet", "timm") for text in EXTRAS[extra]])
    at_once = [each for each in imports("dfkd_core", at_once=True) if each[0] not in IMPORTED_LATE]
    assert undeclared(at_once, base) == []
    assert undeclared(imports("dfkd_core", at_once=False), base | optional) == []
    assert {name for _, name in at_once} >= {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize("package", ["dfkd_tasks", "dfkd_flows"])
def test_pipeline__is_declared_with_all_that_it_imports(package: str) -> None:
    declared = names_of([*PROJECT["dependencies"], *EXTRAS["pipeline"], *EXTRAS["hub"]])
    found = list(imports(package, at_once=False))
    assert undeclared(found, declared) == []
    assert ("dfkd_flows/cli.py", "typer") in found or package != "dfkd_flows"


def test_core__is_imported_with_the_base_alone() -> None:
    allowed = modules_of(with_their_needs(names_of(PROJECT["dependencies"]))) | {"dfkd_core"}
    assert not allowed & {"prefect", "mlflow", "dvc", "pydantic", "typer", "matplotlib", "onnx", "timm"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, ",".join(allowed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_locks__name_each_direct_dependency_in_its_range() -> None:
    runtime, tools = locked("requirements.lock"), locked("requirements-dev.lock")
    direct = [(text, runtime) for extra in EXTRAS.keys() - {"all", "dev"} for text in EXTRAS[extra]]
    direct += [(text, runtime) for text in PROJECT["dependencies"]]
    direct += [(text, runtime | tools) for text in EXTRAS["dev"]]
    for text, lock in direct:
        requirement = Requirement(text)
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), text


def test_locks__are_apart() -> None:
    runtime, tools = locked("requirements.lock"), locked("requirements-dev.lock")
    assert runtime.keys() & tools.keys() == set()
    needed = with_their_needs(names_of([*PROJECT["dependencies"], *EXTRAS["all"]]))
    assert {name for name in needed - runtime.keys() if not OF_CUDA.match(name)} == set()
    assert tools.keys() & needed == set()
    assert (ROOT / "requirements-dev.lock").read_text().count("-r requirements.lock\n") == 1


def test_all__is_every_extra_but_the_tools() -> None:
    (everything,) = EXTRAS["all"]
    assert Requirement(everything).extras == EXTRAS.keys() - {"all", "dev"}
