"""The examples that users read: one in the docstring of every public name, and the README's notebook."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dfkd_core

ROOT = Path(__file__).resolve().parents[2]


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(dir(dfkd_core)))
def test_docstring__has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    docstring = inspect.getdoc(getattr(dfkd_core, name))
    found = doctest.DocTestParser().get_doctest(docstring or "", {}, name, name, 0)
    assert found.examples, f"{name} has no >>> example"
    failures: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(found, out=failures.append)
    assert not result.failed, "".join(failures)
    assert list(tmp_path.iterdir()) == []


def test_readme_notebook__passes_a_type_checker(tmp_path: Path) -> None:
    assert type_errors(tmp_path, notebook()) == []


def test_readme_notebook__a_misspelt_setting_is_a_type_error(tmp_path: Path) -> None:
    misspelt = notebook().replace("SynthesisConfig(num_images=", "SynthesisConfig(num_image=")
    (error,) = type_errors(tmp_path, misspelt)
    assert 'Unexpected keyword argument "num_image" for "SynthesisConfig"' in error


def notebook() -> str:
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "my_module" in block)
    return f"from torch import nn\n\nmy_module: nn.Module\n{example}"


def type_errors(folder: Path, code: str) -> list[str]:
    """Return the lines of mypy's errors in the code."""
    path = folder / "notebook.py"
    path.write_text(code, encoding="utf-8")
    # From the root, with its settings and its cache: without the cache, mypy checks torch for a minute.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]
