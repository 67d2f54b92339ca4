"""The wheel holds the packages and nothing else, and works in environments of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"dfkd_core": "dfkd_core", "tasks": "dfkd_tasks", "flows": "dfkd_flows"}
LOCK = str(ROOT / "requirements.lock")
MINUTES = pytest.mark.timeout(1800)
Run = Callable[..., subprocess.CompletedProcess[str]]


def expected_files() -> set[str]:
    """Return the names that the repository's files have in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    present = [name for name in filter(None, listed.split("\0")) if (ROOT / name).exists()]
    parts = [name.partition("/") for name in present]
    return {f"{PACKAGES[folder]}/{rest}" for folder, _, rest in parts}


def copy_sources(folder: Path) -> Path:
    """Copy what a wheel is built from, so that the build leaves nothing in the repository."""
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copytree(ROOT / "src", folder / "src", symlinks=True, ignore=ignored)
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a `wheel` or an `sdist` as pip and build do, with the setuptools of this environment."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel__holds_every_file_of_the_packages_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    wheel = build("wheel", copy_sources(tmp_path / "source"), tmp_path)
    assert files_in(wheel) == expected_files()
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    always = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert {"torch", "torchvision", "numpy", "safetensors"} <= set(always)
    assert not {"prefect", "dvc", "mlflow", "pydantic"} & set(always)


def load_installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / ".ci" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel by way of the sdist, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    sdist = build("sdist", copy_sources(folder / "source"), folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def environment(folder: Path, requirement: str) -> Iterator[Run]:
    """Yield a function that runs a program of an environment in which only the requirement is installed."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    load_installer().install(folder / "bin" / "python", requirement, "-c", LOCK)

    def run(program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(folder / "bin" / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            **{**options, "env": variables | options.get("env", {})},
        )

    yield run
    # A gigabyte or more; pytest keeps the folders of its last runs.
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a function that runs programs where the wheel is installed with the base alone."""
    yield from environment(tmp_path_factory.mktemp("base"), str(wheel))


@pytest.fixture(scope="module")
def pipeline(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a function that runs programs where the wheel is installed with the pipeline."""
    yield from environment(tmp_path_factory.mktemp("pipeline"), f"{wheel}[pipeline]")


@pytest.mark.slow
@MINUTES
def test_wheel__from_the_sdist_is_the_same(wheel: Path) -> None:
    assert files_in(wheel) == expected_files()


@pytest.mark.slow
@MINUTES
def test_base__runs_the_readmes_notebook(base: Run, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "my_module" in block)
    smaller = example.replace("=2000", "=100").replace("=500", "=50").replace('_half")', '_half", epochs=1)')
    network = "from dfkd_core.models.built_in import build_network\nimport torch\ntorch.manual_seed(0)\n"
    network += 'my_module = build_network("lenet5", in_channels=1, image_size=32, num_classes=10)\n'
    done = base("python", "-c", f"{network}{smaller}\nprint(report.num_images)", cwd=tmp_path)
    assert done.stdout.split()[-1:] == ["50"], done.stderr


@pytest.mark.slow
@MINUTES
@pytest.mark.parametrize("arguments", [(), ("--version",), ("run", "--preset", "digits")])
def test_base__the_command_says_how_to_install_the_pipeline(
    base: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = base("dfkd", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert re.match(r"dfkd: This command needs \d+ packages that are not installed \(dvc, .*pip install", done.stderr)
    assert "'prefect<4,>=3.6'" in done.stderr
    assert "dfkd[" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@MINUTES
def test_base__a_missing_extra_is_named_by_its_packages(base: Run, tmp_path: Path) -> None:
    done = base("python", "-c", "import dfkd_core.models.architectures as a; a.import_timm()", cwd=tmp_path)
    assert "timm:NAME needs the package timm. Install it with: " in done.stderr
    assert done.stderr.rstrip().endswith("-m pip install 'timm<2,>=1.0'")


@pytest.mark.slow
@MINUTES
def test_pipeline__installs_three_packages_at_the_top_level(pipeline: Run, tmp_path: Path) -> None:
    code = "from importlib.metadata import files; print(*{path.parts[0] for path in files('dfkd')})"
    tops = set(pipeline("python", "-c", code, cwd=tmp_path).stdout.split())
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dfkd_core", "dfkd_tasks", "dfkd_flows", ".."}


@pytest.mark.slow
@MINUTES
def test_pipeline__the_command_works_next_to_a_users_flows_and_tasks(pipeline: Run, tmp_path: Path) -> None:
    for name in ("flows", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'me: {name}'\n")
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(tmp_path)}}
    version = pipeline("dfkd", "--version", **options)
    assert version.stdout.startswith("dfkd "), version.stderr
    assert "site-packages" in version.stdout
    assert "doctor" in pipeline("dfkd", "--help", **options).stdout
    shown = pipeline("dfkd", "show", **options)
    assert (shown.returncode, "is in no project" in shown.stderr) == (2, True), shown.stderr
    code = "import flows, tasks, dfkd_flows.pipeline, dfkd_tasks.stages.synthesis; print(flows.OWNER, tasks.OWNER)"
    done = pipeline("python", "-c", code, **options)
    assert done.stdout.strip() == "me: flows me: tasks", done.stderr


@pytest.mark.slow
@MINUTES
def test_pipeline__makes_a_project_of_a_users_own_and_runs_it(
    pipeline: Run, tmp_path: Path, small: Mapping[str, Any]
) -> None:
    for name in ("flows", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('somebody imported what is mine')\n")
    scripts = pipeline("python", "-c", "import sys; print(sys.prefix)").stdout.strip() + "/bin"
    variables = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / ".dfkd" / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / ".dfkd" / "results"),
    }
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    for program, arguments, text in (
        ("dfkd", ["init", *settings], "Next: dfkd run"),
        ("dfkd", ["run"], "Registered dfkd-student-digits version 1"),
        ("dvc", ["repro"], "Stage 'evaluate@default' didn't change"),
        ("dfkd", ["export", "--out", "exported", "--format", "safetensors"], "Made"),
    ):
        done = pipeline(program, *arguments, cwd=tmp_path, env=variables)
        assert (done.returncode, text in done.stdout) == (0, True), done.stdout + done.stderr
